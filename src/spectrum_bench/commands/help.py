"""The text of `--help`. Hydra's own takes a second: it lists all groups even for a template that does not show them."""

from string import Template

from omegaconf import DictConfig, OmegaConf


def help_text(cfg: DictConfig) -> str:
    """The template `hydra.help.template` of a composed configuration, with all of its keys.

    Args:
        cfg: with Hydra's own nodes.
    """
    keys = OmegaConf.to_yaml(OmegaConf.create({key: cfg._get_node(key) for key in cfg if key != "hydra"}))
    return Template(cfg.hydra.help.template).substitute(CONFIG=keys)
