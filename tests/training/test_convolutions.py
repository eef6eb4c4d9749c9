"""A convolution to one pixel equals the matrix product that replaces it: output, gradients, names."""

import pytest
import torch
import torch.nn as nn
import torchvision

from carp_plugin.training.convolutions import OnePixelConv2d, use_one_pixel_convolutions

FULL_WIDTH = True  # of ResNets: tests/conftest.py

#: kernel, stride, padding, input height and width
SHAPES = [
    (3, 1, 1, 1, 1),
    (3, 2, 1, 2, 2),
    (3, 2, 1, 1, 2),
    (1, 1, 0, 1, 1),
    (1, 2, 0, 2, 2),  # the input's second row and column meet no tap
    (3, 1, 0, 3, 3),
    (7, 2, 3, 1, 2),
    (3, 4, 0, 5, 4),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [False, True])
def test_output_and_gradients_are_those_of_the_convolution(shape, memory_format, bias):
    kernel, stride, padding, height, width = shape
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, kernel, stride, padding, bias=bias).double()
    images = torch.randn(4, 5, height, width, dtype=torch.float64)
    cotangent = torch.randn(4, 7, 1, 1, dtype=torch.float64)

    def run():
        module = conv.to(memory_format=memory_format)
        x = images.clone().to(memory_format=memory_format).requires_grad_()
        module.zero_grad()
        out = module(x)
        out.backward(cotangent)
        return [out.detach(), x.grad] + [p.grad.clone() for p in module.parameters()]

    expected = run()
    assert use_one_pixel_convolutions(conv) == 1 and isinstance(conv, OnePixelConv2d)
    for got, wanted in zip(run(), expected):
        assert got.shape == wanted.shape
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_larger_maps_are_convolved():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    images = torch.randn(2, 3, 5, 2)
    expected = conv(images)
    use_one_pixel_convolutions(conv)
    assert torch.equal(conv(images), expected) and conv(images).shape == (2, 4, 5, 2)


def test_other_convolutions_are_left_alone():
    others = nn.ModuleList(
        [
            nn.Conv2d(4, 4, 3, padding=1, groups=2),
            nn.Conv2d(4, 4, 3, padding=2, dilation=2),
            nn.Conv2d(4, 4, 3, padding="same"),
            nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(4, 4, 1, padding=1),
            nn.Linear(4, 4),
        ]
    )
    assert use_one_pixel_convolutions(others) == 0


def test_a_resnet_computes_the_same_and_keeps_its_names():
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(num_classes=3).double()
    images = torch.randn(4, 3, 24, 24, dtype=torch.float64)
    names, expected = list(resnet.state_dict()), resnet(images).detach()
    resnet(images).square().sum().backward()
    gradients = [p.grad.clone() for p in resnet.parameters()]
    assert use_one_pixel_convolutions(resnet) == 20
    resnet.zero_grad()
    out = resnet(images)
    torch.testing.assert_close(out.detach(), expected, rtol=1e-10, atol=1e-10)
    out.square().sum().backward()
    for parameter, gradient in zip(resnet.parameters(), gradients):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-10)
    assert list(resnet.state_dict()) == names
