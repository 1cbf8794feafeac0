"""Attention: the equation, whatever kernel computes it."""

import sys
from types import ModuleType

import pytest
import torch

from dinov2kit import attention as attention_module
from dinov2kit.attention import attention


def random_heads(n_queries=7, n_keys=7, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, n_queries, 3, 16), (2, n_keys, 3, 16), (2, n_keys, 3, 16)]
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def equation(queries, keys, values):
    """Softmax(q kᵀ / sqrt(d)) v, written out in fp64."""
    queries, keys, values = (tensor.double().transpose(1, 2) for tensor in (queries, keys, values))
    weights = (queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5).softmax(-1)
    return (weights @ values).transpose(1, 2)


@pytest.fixture
def no_kernel_remembered():
    attention_module._xformers_kernel.cache_clear()
    yield
    attention_module._xformers_kernel.cache_clear()


@pytest.mark.parametrize("n_keys", [7, 5])
def test_attention_is_the_equation(n_keys):
    heads = random_heads(n_keys=n_keys)
    torch.testing.assert_close(attention(*heads).double(), equation(*heads), atol=1e-6, rtol=0)


def test_a_query_that_equals_one_key_takes_its_value():
    keys = torch.eye(4).reshape(1, 4, 1, 4) * 100
    values = torch.arange(16.0).reshape(1, 4, 1, 4)
    torch.testing.assert_close(attention(keys, keys, values), values)


def test_the_order_of_the_keys_does_not_matter():
    queries, keys, values = random_heads()
    order = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    torch.testing.assert_close(
        attention(queries, keys[:, order], values[:, order]), attention(queries, keys, values)
    )


def test_xformers_is_never_asked_for_tensors_on_the_cpu(monkeypatch, no_kernel_remembered):
    broken = ModuleType("xformers.ops")
    broken.memory_efficient_attention = lambda *heads: pytest.fail("xformers was called")
    monkeypatch.setitem(sys.modules, "xformers", ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", broken)
    heads = random_heads()
    torch.testing.assert_close(attention(*heads).double(), equation(*heads), atol=1e-6, rtol=0)


@pytest.mark.parametrize("fault", [ImportError, OSError])
def test_an_xformers_that_cannot_be_imported_is_as_none(monkeypatch, no_kernel_remembered, fault):
    class Refuses:
        def find_spec(self, name, path=None, target=None):
            if name.startswith("xformers"):
                raise fault("built for another torch")

    monkeypatch.delitem(sys.modules, "xformers.ops", raising=False)
    monkeypatch.delitem(sys.modules, "xformers", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    assert attention_module._xformers_kernel() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_xformers_equals_torch_on_cuda(dtype, monkeypatch):
    pytest.importorskip("xformers.ops")
    heads = [tensor.to(dtype) for tensor in random_heads(device="cuda")]
    fused = attention(*heads)
    monkeypatch.setattr(attention_module, "_xformers_kernel", lambda: None)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(fused, attention(*heads), atol=tolerance, rtol=0)
