"""Bounds of the numbers that decide how much a run allocates and how long it loops. They are so large that only a
typing error exceeds them."""

import re
from collections.abc import Mapping
from typing import Any

from spectrum_bench.checks import brief, number, whole
from spectrum_bench.errors import BadValue

MOST_STEPS = 10_000  # published samplers take at most 1000
MOST_JOBS = 10**6  # prompts times samples a prompt; the largest page that was tried has 5,000 samples
MOST_PIXELS = 2**28  # pixels of a sample, all frames together: 8192 x 8192, or 290 frames of 720p
LONGEST_NAME = 200  # characters; file systems take 255 bytes, and suffixes are added
LONGEST_PATH = 2000  # characters
# A setting of a run -> its least and its largest value.
RUN = {
    "num_inference_steps": (1, MOST_STEPS),
    "samples_per_prompt": (1, 10_000),
    "total_prompt_num": (1, 10**9),
    "seed": (0, 2**64),
    "ngpu": (1, 1024),
    "threads": (1, 1024),
    "warmup_samples": (0, 1000),
    "keep_latents": (0, 10**9),
}
MODEL = {"width": (16, 8192), "height": (16, 8192), "frame_stride": (1, 64), "num_frames": (1, 10_001)}
# An argument of a pipeline's call, a whole number -> its least and its largest value.
WHOLE_ARGUMENTS = {
    "height": (16, 8192),
    "width": (16, 8192),
    "num_frames": (1, 10_001),
    "max_sequence_length": (1, 8192),
    "num_images_per_prompt": (1, 1),  # a record holds one sample; samples_per_prompt= gives more
    "num_videos_per_prompt": (1, 1),
}
# the arguments that the sampler itself passes
OURS = ("prompt", "generator", "num_inference_steps", "output_type", "return_dict")


def check_name(key: str, name: object) -> None:
    """Refuse a name that cannot be the name of a file.

    Raises:
        BadValue: the name has slashes, other special characters or too many characters.
    """
    if not (isinstance(name, str) and re.fullmatch(r"\w[\w=,.+@ -]*", name) and len(name) <= LONGEST_NAME):
        raise BadValue(f"{key}={brief(name)} is no name: use up to {LONGEST_NAME} letters, digits and -_=,.")


def check_folder_name(name: str) -> None:
    """Refuse a name that is no folder below output_base_path.

    Raises:
        BadValue: the name leads elsewhere, is output_base_path itself, or cannot be a folder's name.
    """
    parts = name.split("/")
    if not all(re.fullmatch(r"[\w=,.+@ -]+", part) and part.strip(". ") for part in parts):
        raise BadValue(f"exp_name={brief(name)} is no folder below output_base_path: use letters, digits and -_=,.")
    if max(map(len, parts)) > LONGEST_NAME or len(name) > LONGEST_PATH:
        raise BadValue(f"exp_name={brief(name)} is too long: use at most {LONGEST_NAME} characters")


def check_path(key: str, value: object) -> str:
    """The value as a path. A number is allowed.

    Raises:
        BadValue: the value is null, empty, a list or too long.
    """
    if value is None:
        raise BadValue(f"{key} is null: name one")
    if not isinstance(value, (str, int, float)) or not str(value):
        raise BadValue(f"{key}={brief(value)} is no path: name one")
    path = str(value)
    if len(path) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in path.split("/")) or "\0" in path:
        raise BadValue(f"{key}={brief(path)} is too long: use names of at most {LONGEST_NAME} characters")
    return path


def check_arguments(arguments: object) -> None:
    """Refuse arguments of the pipeline's call that would fail after the model is loaded.

    Raises:
        BadValue: a value is of the wrong kind, or the sampler itself passes the argument.
    """
    check_mapping("model.arguments", arguments)
    assert isinstance(arguments, Mapping)
    for name, value in arguments.items():
        key = f"model.arguments.{name}"
        if name in OURS or str(name).startswith("callback"):
            raise BadValue(f"{key} is given by the run itself: leave it out")
        if name in WHOLE_ARGUMENTS:
            whole(key, value, *WHOLE_ARGUMENTS[name])
        elif "scale" in str(name):
            number(key, value, -1000, 1000)
        else:
            _check_finite(key, value)


def check_mapping(key: str, value: object, known: tuple[str, ...] | None = None) -> None:
    """Refuse a value that is no mapping, or that has unknown keys.

    Raises:
        BadValue: it is no mapping, or a key is unknown.
    """
    if not isinstance(value, Mapping):
        raise BadValue(f"{key}={brief(value)} has no keys: write {key}.<key>=<value>")
    strangers = [name for name in value if known is not None and name not in known]
    if strangers:
        raise BadValue(f"there is no {key}.{strangers[0]}: it takes {', '.join(known or ())}")


def check_values(key: str, values: Mapping[str, Any]) -> None:
    """Refuse infinities and NaN below a key. NaN equals nothing, so that no run could go on in its folder.

    Raises:
        BadValue: there is such a number.
    """
    for name, value in values.items():
        _check_finite(f"{key}.{name}", value)


def _check_finite(key: str, value: object) -> None:
    if isinstance(value, Mapping):
        check_values(key, value)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_finite(key, each)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= 1e300:  # false for NaN
            raise BadValue(f"{key} must be a number, not {brief(value)}")
    elif isinstance(value, str) and len(value) > LONGEST_PATH:
        raise BadValue(f"{key}={brief(value)} is too long: use at most {LONGEST_PATH} characters")
