"""An exported model as a graph, in the format of torch.export (pt2) or ONNX: it runs without this package.

All chance comes in from outside, so that the graph is a function: whoever runs it draws tau from its prior and the
noise of z from a standard normal distribution. The size of the images is fixed, their number and that of samples free.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

from proseg.data.batches import normalise
from proseg.errors import CheckpointError, GraphError
from proseg.exported import ExportedModel
from proseg.generate import Maps, mean_maps
from proseg.latents import Posterior, noise_cells, upsampled
from proseg.losses import probabilities
from proseg.method import Draws
from proseg.model import Encoding, ProSeg
from proseg.records import GRAPHS

Run = Callable[..., Sequence[np.ndarray]]
"""A graph that was read back: its inputs in their order -> (raters, samples)."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS = ("raters", "samples")
TOLERANCE = 1e-4
"""Of a probability, between the graph and the model it was made of."""
CHECKED_SAMPLES = 5


class Graph(nn.Module):
    """What is written: image and chance in, probabilities out."""

    def __init__(self, exported: ExportedModel):
        """Raises CheckpointError where the model does not say what size its training images had."""
        super().__init__()
        self.model, self.window = exported.model, exported.data["window"]
        self.size = _size(exported)
        m = exported.config.model
        self.use_z, self.use_tau = (isinstance(self.model, ProSeg) and switch for switch in (m.use_z, m.use_tau))
        cells = [-(-side // m.patch) for side in self.size]
        self.noise = (m.z_channels, *noise_cells(cells[0], cells[1], m.z_grid))
        """Shape of the noise of one sample."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("image", "tau" if self.use_tau else "who", *(("noise",) if self.use_z else ()))

    def forward(
        self, image: torch.Tensor, chosen: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[Maps, Maps]:
        """Map images.

        Args:
            image: [B, C, H, W], in the intensities of the training data.
            chosen: of each sample its tau, [B, S, K] on the simplex; where the model has no tau, the number of the
                rater in whose name it is drawn, [B, S] int64.
            noise: of each sample [B, S, Cz, cells, cells], standard normal; None where the model has no z.

        Returns:
            The map made for each rater [B, R, K, H, W], and the samples [B, S, K, H, W].
        """
        model = self.model
        encoding = model.encode(normalise(image, self.window))
        images = image.shape[0]  # not len(), which would make it a constant of the graph
        raters = self._decode(encoding, model.each_rater(), images)
        who = model.classify(chosen).argmax(-1) if isinstance(model, ProSeg) and self.use_tau else chosen
        samples = Draws(who, chosen if self.use_tau else None)
        if noise is None:
            return raters, self._decode(encoding, samples, images)
        drawn = _with_noise(encoding, who, noise)
        # A row of the drawn encoding is one sample's own z.
        flat = Draws(torch.zeros_like(who).view(-1, 1), None if samples.tau is None else chosen.flatten(0, 1)[:, None])
        return raters, self._decode(drawn, flat, flat.who.shape[0]).view(*who.shape, *raters.shape[2:])

    def _decode(self, encoding, draws: Draws, images: int) -> Maps:
        """-> [images, S, K, H, W]"""
        who = draws.who.expand(images, -1)
        tau = None if draws.tau is None else draws.tau.expand(images, -1, -1).flatten(0, 1)
        place = torch.arange(images)[:, None].expand_as(who).flatten()
        found = probabilities(self.model.decode(encoding, place, Draws(who.flatten(), tau)))
        return found.unflatten(0, who.shape)


def _with_noise(encoding: Encoding, who: torch.Tensor, noise: torch.Tensor) -> Encoding:
    """The encoding of B * S images whose z is no longer a distribution, each for one rater."""
    images, samples = who.shape
    place = torch.arange(images)[:, None].expand(images, samples)
    posterior = encoding.posterior[place.flatten(), who.flatten()]
    height, width = posterior.mean.shape[-2:]
    z = torch.addcmul(
        posterior.mean, torch.exp(0.5 * posterior.log_variance), upsampled(noise.flatten(0, 1), height, width)
    )
    return Encoding(Posterior(z[:, None], z[:, None]), encoding.size)


def _size(exported: ExportedModel) -> tuple[int, int]:
    """(height, width) of the training images."""
    try:
        height, width = int(exported.data["height"]), int(exported.data["width"])
    except (KeyError, TypeError, ValueError):
        raise CheckpointError("the model does not say what size its training images had; export it again") from None
    crop = exported.config.data.crop or max(height, width)
    return min(height, crop), min(width, crop)


# Writing


def check_packages(formats: Sequence[str]) -> None:
    """Raises GraphError where a format needs packages that are not installed."""
    missing = [name for name in ONNX_PACKAGES if "onnx" in formats and find_spec(name) is None]
    if missing:
        raise GraphError(f"ONNX needs packages that are not installed: pip install {' '.join(missing)}")


def write(exported: ExportedModel, folder: Path, formats: Sequence[str]) -> None:
    """Write a model on the CPU as graphs into a folder. Each is read back and compared with the model on random images
    before it is kept.

    Raises:
        GraphError: the model cannot be written so, or the graph says something else; no file is left.
    """
    check_packages(formats)
    graph = Graph(exported).eval()
    program = _trace(graph)
    for name in formats:
        path = folder / GRAPHS[name]
        try:
            with _quiet():
                run = WRITERS[name](graph, program, path)
            _compare(graph, run, name)
        except (RuntimeError, ValueError) as error:
            path.unlink(missing_ok=True)
            raise GraphError(f"the model cannot be written as {name}: {_first_line(error)}") from None
        except GraphError:
            path.unlink()
            raise


def _trace(graph: Graph) -> torch.export.ExportedProgram:
    # Two or more of each: torch.export takes a size of one for a constant.
    inputs = _inputs(graph, images=2, samples=3).tensors
    images, samples = torch.export.Dim("images", min=1, max=4096), torch.export.Dim("samples", min=1, max=4096)
    shapes = ({0: images}, *[{0: images, 1: samples} for _ in inputs[1:]])
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(graph, inputs, dynamic_shapes=shapes)
    except (RuntimeError, ValueError) as error:
        raise GraphError(f"the model cannot be written as a graph: {_first_line(error)}") from None
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:  # where each line of code lay on this machine is nobody's business
                node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


@dataclass(frozen=True)
class _Inputs:
    tensors: tuple[torch.Tensor, ...]
    draws: Draws
    """The same chance, as the model itself is told of it."""


def _inputs(graph: Graph, *, images: int, samples: int, seed: int = 0) -> _Inputs:
    """Random images, and what `Method.prior` and `Method.decode` would draw for them."""
    model, generator = graph.model, torch.Generator().manual_seed(seed)
    low, high = graph.window or (-1.0, 1.0)
    image = low + (high - low) * torch.rand(images, model.channels, *graph.size, generator=generator)
    draws = model.prior(images, samples, generator)
    chosen = draws.who if draws.tau is None else draws.tau
    state = generator.get_state()
    noise = torch.randn(images, samples, *graph.noise, generator=generator)
    generator.set_state(state)
    return _Inputs((image, chosen, noise) if graph.use_z else (image, chosen), draws)


def _write_pt2(graph: Graph, program: torch.export.ExportedProgram, path: Path) -> Run:
    torch.export.save(program, path)
    module = torch.export.load(path).module()

    def run(*inputs: torch.Tensor) -> Sequence[np.ndarray]:
        with torch.no_grad():
            return [maps.numpy() for maps in module(*inputs)]

    return run


def _write_onnx(graph: Graph, program: torch.export.ExportedProgram, path: Path) -> Run:
    import onnxruntime

    written = torch.onnx.export(program, input_names=graph.inputs, output_names=OUTPUTS, verbose=False)
    assert written is not None
    written.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: torch.Tensor) -> Sequence[np.ndarray]:
        named = zip(graph.inputs, (tensor.numpy() for tensor in inputs), strict=True)
        return session.run(list(OUTPUTS), dict(named))  # pyright: ignore[reportReturnType]

    return run


WRITERS = {"pt2": _write_pt2, "onnx": _write_onnx}


def _compare(graph: Graph, run: Run, name: str) -> None:
    """With other numbers of images and samples than it was traced with."""
    for images, samples in ((1, CHECKED_SAMPLES), (3, 1)):
        given = _inputs(graph, images=images, samples=samples, seed=images)
        expected = _expected(graph, given)
        with _quiet():
            found = run(*given.tensors)
        for output, one, other in zip(OUTPUTS, expected, found, strict=True):
            apart = float(np.abs(one.numpy() - other).max())
            if not apart <= TOLERANCE:
                raise GraphError(f"the graph written as {name} differs from the model by {apart:.2g} in {output}")


@torch.no_grad()
def _expected(graph: Graph, given: _Inputs) -> tuple[Maps, Maps]:
    """What the model itself says, drawing its noise as it always does."""
    model, image, draws = graph.model, normalise(given.tensors[0], graph.window), given.draws
    tau = None if draws.tau is None else draws.tau.flatten(0, 1)
    images, samples = draws.who.shape
    place = torch.arange(images).repeat_interleave(samples)
    drawn = model.decode(model.encode(image), place, Draws(draws.who.flatten(), tau, draws.generator))
    return mean_maps(model, image), probabilities(drawn).unflatten(0, (images, samples))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """What the exporters tell of themselves is for their developers."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


# What is said of it


def described(exported: ExportedModel, formats: Sequence[str]) -> str:
    """Markdown, for the card of the folder."""
    graph, model = Graph(exported), exported.model
    height, width = graph.size
    rows = [f"| image | [B, {model.channels}, {height}, {width}] float32 | intensities as above |"]
    if graph.use_tau:
        m = exported.config.model
        prior = f"the symmetric Dirichlet distribution of concentration {m.concentration}"
        shape = f"[B, S, {m.tau_size}] float32"
        rows.append(f"| tau | {shape} | each sample's preference; for what anyone might say, drawn from {prior} |")
    else:
        rows.append(f"| who | [B, S] int64 | a rater's number, 0 to {model.raters - 1}, drawn uniformly |")
    if graph.use_z:
        shape = ", ".join(map(str, graph.noise))
        rows.append(f"| noise | [B, S, {shape}] float32 | drawn from the standard normal distribution; 0: its mean |")
    files = " and ".join(f"`{GRAPHS[name]}`" for name in formats)
    table = "\n".join(rows)
    return f"""
## Graph

{files}: image and chance in, probabilities out, for images of {height} x {width} pixels, on a CPU. The numbers
of images B and of samples S are free. Checked against the weights on random images to within {TOLERANCE:g}.

| input | shape | what |
|---|---|---|
{table}

Outputs: raters [B, {model.raters}, {model.classes}, {height}, {width}], the map made for each rater, whatever tau and
noise are; samples [B, S, {model.classes}, {height}, {width}].
"""
