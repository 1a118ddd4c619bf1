"""The tensors of a model in GPTQ, AWQ or compressed-tensors form, one at a time, as a plain bf16 model has them.

They are the numbers that vLLM's kernels multiply with: scales of 4 and 8 packed bits are rounded to bf16 there, too.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from torch import Tensor

from adapters.lint.tensors import TensorHeader, read_headers
from train.base.prequantized import Prequantized
from train.errors import PrepareBaseError
from train.export.base_tensors import BaseTensors
from train.export.tensor_files import DTYPES, TensorPlan, read_tensor, write_sharded

_CPU_MULTIPLE = 32  # vLLM 0.32: CPUWNA16LinearKernel

_PACKED_WEIGHT = {
    "gptq": "qweight",
    "awq": "qweight",
    "pack-quantized": "weight_packed",
    "int-quantized": "weight",
}
_PARTS = frozenset(
    {"qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"}
    | {"weight_g_idx", "input_scale", "input_zero_point"}
)


def dequantize_folder(source: Path, target: Path, quantized: Prequantized) -> None:
    """Write the weights of a quantized model folder as bf16, one tensor at a time.

    Raises:
        PrepareBaseError: A tensor is missing, or has a shape that vLLM's kernel does not take.
    """
    tensors = BaseTensors(source) if quantized.packing is None else PackedTensors(source, quantized)
    plans = list(tensors.plans())
    write_sharded(target, plans, (tensors.read(plan.name) for plan in plans))


def check_shapes(name: str, folder: Path, quantized: Prequantized) -> None:
    """Check that vLLM's CPU kernel for 4 bits takes every layer.

    Raises:
        PrepareBaseError: It does not.
    """
    for layer, shape in PackedTensors(folder, quantized).layers():
        if quantized.packing != "int-quantized" and any(size % _CPU_MULTIPLE for size in shape):
            raise PrepareBaseError(
                f"Base model {name!r} is quantized as {quantized}, and its layer {layer!r} has {shape[0]} outputs and "
                f"{shape[1]} inputs: vLLM's kernel on a CPU takes multiples of {_CPU_MULTIPLE}. Prepare it with "
                "`--storage dequantized`."
            )


class PackedTensors:
    """The tensors of a quantized model folder as a plain model has them."""

    def __init__(self, folder: Path, quantized: Prequantized) -> None:
        self._name, self._quantized = folder.name, quantized
        self._headers = {
            header.name: (path, header)
            for path in sorted(folder.glob("*.safetensors"))
            for header in read_headers(path).values()
        }
        last = _PACKED_WEIGHT[str(quantized.packing)]
        self._packed = {
            f"{module}.weight"
            for module, _, part in (name.rpartition(".") for name in self._headers)
            if part == last and (last != "weight" or f"{module}.weight_scale" in self._headers)
        }

    def plans(self) -> Iterator[TensorPlan]:
        """Name, type and shape of every tensor.

        Raises:
            PrepareBaseError: No tensor is packed.
        """
        if not self._packed:
            raise PrepareBaseError(
                f"Base model {self._name!r} says that it is quantized as {self._quantized}, but its files hold no "
                "such tensor. Download it again."
            )
        for name in sorted(self._packed):
            yield TensorPlan(name, torch.bfloat16, self.shape(name))
        for name, (_, header) in self._headers.items():
            if name not in self._packed and not self._is_part(name):
                yield TensorPlan(name, _plain_dtype(header), header.shape)

    def layers(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Name and shape (outputs, inputs) of each quantized layer."""
        for name in sorted(self._packed):
            yield name.removesuffix(".weight"), self.shape(name)

    def shape(self, name: str) -> tuple[int, int]:
        """Outputs and inputs of a quantized layer."""
        module, packing = name.removesuffix(".weight"), self._quantized.packing
        is_packed = packing == "pack-quantized"
        sizes = (
            self._part(module, "weight_shape").flatten().tolist()
            if is_packed
            else self._header(module, _PACKED_WEIGHT[str(packing)]).shape
        )
        if len(sizes) != 2:
            raise self._damaged(module, f"it has {len(sizes)} sizes, wanted outputs and inputs")
        outputs, inputs = map(int, sizes)
        if is_packed:
            return outputs, inputs
        per_word = 32 // self._quantized.num_bits
        if packing == "gptq":
            return inputs, outputs * per_word
        return (inputs * per_word, outputs) if packing == "awq" else (outputs, inputs)

    def read(self, name: str) -> Tensor:
        """One tensor; a quantized one is dequantized to bf16."""
        if name not in self._packed:
            path, header = self._headers[name]
            with path.open("rb") as file:
                return self._finite(name, read_tensor(file, header).to(_plain_dtype(header)))
        module = name.removesuffix(".weight")
        unpack = {
            "gptq": self._unpack_gptq,
            "awq": self._unpack_awq,
            "pack-quantized": self._unpack_compressed,
            "int-quantized": self._unpack_int8,
        }
        shape = self.shape(name)
        try:
            numbers, scales, zeros = unpack[str(self._quantized.packing)](module, shape)
        except PrepareBaseError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            raise self._damaged(module, str(error).splitlines()[0].rstrip(".")) from error
        if problem := _shapes_problem(shape, numbers, scales, zeros, self._quantized.group_size):
            raise self._damaged(module, problem)
        return self._finite(name, dequantize(numbers, scales, zeros))

    def _unpack_gptq(self, module: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        numbers = unpack_from_int32(
            self._part(module, "qweight"), self._quantized.num_bits, torch.Size(shape[::-1]), packed_dim=0
        )
        return numbers.T, self._part(module, "scales").T.bfloat16(), None  # symmetric: `qzeros` says nothing

    def _unpack_awq(self, module: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        packed = self._part(module, "qweight"), self._part(module, "qzeros")
        shuffled = AutoAWQConverter.unpack_awq(*packed, self._quantized.num_bits)
        numbers, zeros = AutoAWQConverter.reverse_awq_order(*shuffled, self._quantized.num_bits)
        assert zeros is not None
        return (numbers & 15).T, self._part(module, "scales").T.bfloat16(), (zeros & 15).T

    def _unpack_compressed(self, module: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        num_bits, scales = self._quantized.num_bits, self._part(module, "weight_scale")
        numbers = unpack_from_int32(self._part(module, "weight_packed"), num_bits, torch.Size(shape))
        if self._quantized.is_symmetric:
            return numbers, scales.bfloat16(), None
        packed = self._part(module, "weight_zero_point")
        zeros = unpack_from_int32(packed, num_bits, torch.Size((shape[0], scales.shape[-1])), packed_dim=0)
        return numbers, scales.bfloat16(), zeros

    def _unpack_int8(self, module: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor | None]:
        scales = self._part(module, "weight_scale").float()
        return self._part(module, "weight"), scales.reshape(-1, 1).expand(shape[0], 1), None

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        """A single weight that is not a number makes every answer one."""
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise PrepareBaseError(
                f"Base model {self._name!r} has weights in {name!r} that are NaN or infinite. Download it again, or "
                "give the model that it was made from, with `--quantization nf4`."
            )
        return tensor

    def _header(self, module: str, part: str) -> TensorHeader:
        try:
            return self._headers[f"{module}.{part}"][1]
        except KeyError:
            raise PrepareBaseError(
                f"Base model {self._name!r} lacks the tensor {f'{module}.{part}'!r} of a quantized layer. Download "
                "it again."
            ) from None

    def _part(self, module: str, part: str) -> Tensor:
        header = self._header(module, part)
        with self._headers[header.name][0].open("rb") as file:
            return read_tensor(file, header)

    def _damaged(self, module: str, problem: str) -> PrepareBaseError:
        return PrepareBaseError(
            f"Base model {self._name!r} says that it is quantized as {self._quantized}, and the tensors of its layer "
            f"{module!r} do not fit together: {problem}. Download it again, or correct its `quantization_config`."
        )

    def _is_part(self, name: str) -> bool:
        module, _, part = name.rpartition(".")
        return part in _PARTS and f"{module}.weight" in self._packed


def dequantize(numbers: Tensor, scales: Tensor, zeros: Tensor | None) -> Tensor:
    """bf16 weights (N, K) of int8 numbers (N, K), and of a scale and zero (N, G) for each group of K / G inputs."""
    grouped = numbers.float().reshape(len(numbers), scales.shape[-1], -1)
    if zeros is not None:
        grouped = grouped - zeros.float().unsqueeze(-1)
    return (grouped * scales.float().unsqueeze(-1)).reshape(numbers.shape).bfloat16()


def _shapes_problem(
    shape: tuple[int, int], numbers: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int
) -> str:
    """What is wrong with the unpacked tensors of a layer (outputs, inputs); "" if nothing is."""
    if tuple(numbers.shape) != shape:
        return f"its numbers are {tuple(numbers.shape)}, wanted {shape}"
    if group_size > 0 and shape[1] % group_size:
        return f"{shape[1]} inputs are no multiple of the groups' {group_size}"
    wanted = (shape[0], shape[1] // group_size if group_size > 0 else 1)
    for kind, tensor in (("scales", scales), ("zero points", zeros)):
        if tensor is not None and tuple(tensor.shape) != wanted:
            return f"its {kind} are {tuple(tensor.shape)}, wanted {wanted}"
    return ""


def _plain_dtype(header: TensorHeader) -> torch.dtype:
    dtype = DTYPES.get(header.dtype)
    if dtype is None:
        raise PrepareBaseError(
            f"The tensor {header.name!r} is stored as {header.dtype}, wanted one of {', '.join(DTYPES)}. Give the "
            "model that it was made from, with `--quantization nf4`."
        )
    return torch.bfloat16 if dtype.is_floating_point else dtype
