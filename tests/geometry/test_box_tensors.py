"""Box formats, IoU and GIoU against published values and plain truths."""

import torch
from safetensors.torch import load_file

from refcli.geometry.box_tensors import box_areas, box_iou_pairs, cxcywh_to_xyxy, giou_pairs


def test_iou_of_pairs_equals_the_published_evaluation(fixtures):
    golden = load_file(fixtures / "metrics" / "io.safetensors")
    predicted, truth = cxcywh_to_xyxy(golden["pred_box"]), cxcywh_to_xyxy(golden["gt_box"])
    torch.testing.assert_close(predicted, golden["xyxy_pred"], atol=1e-6, rtol=0)
    torch.testing.assert_close(truth, golden["xyxy_gt"], atol=1e-6, rtol=0)
    iou = box_iou_pairs(predicted.clamp(0, 1), truth)
    torch.testing.assert_close(iou, golden["box_iou"], atol=1e-6, rtol=0)


def test_giou_of_pairs_equals_the_published_matrix(fixtures):
    golden = load_file(fixtures / "metrics" / "io.safetensors")
    predicted, truth = golden["xyxy_pred"][:16], golden["xyxy_gt"][:16]
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    giou = giou_pairs(predicted[rows.flatten()], truth[columns.flatten()]).view(16, 16)
    torch.testing.assert_close(giou, golden["giou_matrix_first16"], atol=1e-6, rtol=0)


def test_a_box_of_known_centre_has_known_corners_and_area():
    box = cxcywh_to_xyxy(torch.tensor([[5.0, 5.0, 6.0, 2.0]]))
    assert box.tolist() == [[2.0, 4.0, 8.0, 6.0]]
    assert box_areas(box).tolist() == [12.0]


def test_identical_boxes_have_iou_and_giou_of_one():
    box = torch.tensor([[0.1, 0.2, 0.5, 0.9]])
    torch.testing.assert_close(box_iou_pairs(box, box), torch.ones(1))
    torch.testing.assert_close(giou_pairs(box, box), torch.ones(1))


def test_giou_of_distant_boxes_falls_with_their_distance():
    box = torch.tensor([0.0, 0.0, 1.0, 1.0])
    others = torch.stack([box + torch.tensor([shift, 0.0, shift, 0.0]) for shift in (2.0, 4.0, 8.0)])
    # Hull 3, 5 and 9, union 2 each.
    expected = torch.tensor([-1 / 3, -3 / 5, -7 / 9])
    torch.testing.assert_close(giou_pairs(box.expand(3, 4), others), expected)


def test_degenerate_boxes_give_finite_values_and_gradients():
    point = [0.5, 0.5, 0.5, 0.5]
    line = [0.2, 0.5, 0.8, 0.5]
    reversed_box = [0.8, 0.8, 0.2, 0.2]
    ordinary = [0.1, 0.1, 0.6, 0.6]
    shapes = torch.tensor([point, line, reversed_box, ordinary])
    first = shapes.repeat_interleave(4, dim=0).requires_grad_()
    second = shapes.repeat(4, 1)
    for measure in (box_iou_pairs, giou_pairs):
        values = measure(first, second)
        (gradient,) = torch.autograd.grad(values.sum(), first)
        assert values.isfinite().all()
        assert ((values >= -1) & (values <= 1)).all()
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 100


def test_any_leading_shape_is_accepted():
    boxes = torch.rand(3, 5, 4)
    assert box_iou_pairs(boxes, boxes).shape == (3, 5)
    assert giou_pairs(boxes, boxes).shape == (3, 5)
