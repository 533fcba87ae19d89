"""What the device and the host do in a full and in a skipped step."""

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu.lines import Run
from gpu.methods import growing, spectrum_forecast
from gpu.models import Model
from spectrum_bench import forecasters, schedules
from spectrum_bench.caching.sites.stack import LastBlock


def profiled(run: Run, model: Model, mask, forecaster) -> None:
    """torch.profiler over one full and the two skipped steps behind it, each begun with the device idle."""
    steps, device = 50, run.device
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.cuda else [])]
    where = DeviceType.CUDA if device.cuda else DeviceType.CPU
    with profile(activities=kinds):  # its own start-up
        torch.zeros(1, device=device.name).add_(1)
        device.sync()
    plan = mask(steps)
    first = next(s for s in range(6, steps - 2) if plan[s] and not plan[s + 1] and not plan[s + 2])
    wanted, kept, now = {first: "full", first + 1: "skipped 1", first + 2: "skipped 2"}, [], []

    def on_step(i):
        if now:
            device.sync()
            now[-1].__exit__(None, None, None)
            kept.append((wanted[i], now.pop()))
        if i + 1 in wanted:
            device.sync()
            now.append(profile(activities=kinds).__enter__())

    model.sample(steps, mask, forecaster, LastBlock(), on_step=on_step)
    run.profiled = True
    for kind, profile_of in kept:
        events = profile_of.events()
        on_device = [e for e in events if e.device_type == where and not e.name.startswith("ProfilerStep")]
        kernels = [e for e in on_device if not e.name.startswith(("Memcpy", "Memset"))]
        copies = [e.name for e in on_device if e.name.startswith(("Memcpy", "Memset"))]
        times: dict[str, list[float]] = {}
        for event in kernels:
            times.setdefault(event.name, []).append(event.time_range.elapsed_us())
        span = max(e.time_range.end for e in on_device) - min(e.time_range.start for e in on_device)
        busy = sum(e.time_range.elapsed_us() for e in on_device)
        calls = [e.name for e in events if e.device_type == DeviceType.CPU]
        waits = {name: calls.count(name) for name in ("cudaStreamSynchronize", "cudaDeviceSynchronize")}
        waits |= {"launches": sum(name.startswith(("cudaLaunchKernel", "cuLaunchKernel")) for name in calls)}
        waits |= {"item": calls.count("aten::item"), "ops": sum(name.startswith("aten::") for name in calls)}
        moved = {kind: sum(kind in name for name in copies) for kind in ("DtoH", "HtoD", "DtoD", "Memset")}
        top = sorted(times.items(), key=lambda pair: -sum(pair[1]))[:12]
        top = [{"kernel": name[:120], "count": len(us), "ms": sum(us) / 1e3} for name, us in top]
        told = f"{kind}: {len(kernels)} kernels, {busy / 1e3:.3f} ms busy in a span of {span / 1e3:.3f} ms, "
        told += f"syncs {waits['cudaStreamSynchronize']}, DtoH {moved['DtoH']}, HtoD {moved['HtoD']}"
        values = {"kernels": len(kernels), "busy_ms": busy / 1e3, "span_ms": span / 1e3, "copies": moved}
        run.line("profiler", told, step=kind, **values, host_calls=waits, top=top)
        for row in top[:4]:
            print(f"   {row['ms']:.3f} ms {row['count']} x {row['kernel'][:70]}", flush=True)


def profiler(run: Run) -> None:
    """By itself, where `flux` did not do it on its own model."""
    if run.profiled:
        return
    model = Model(run, "profiler", "flux")
    model.method("warm-up", 2, schedules.full, forecasters.reuse, None, guess_s=5)
    profiled(run, model, growing(50, 3.0), spectrum_forecast(50))
