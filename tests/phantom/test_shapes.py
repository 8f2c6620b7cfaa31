"Distances are right at the surface, boxes hold their shapes, and a mirror image is one."
import numpy as np
import pytest

from ctseg.phantom.shapes import Ball, Chain, CurvedPlate, Pose, Tube, load_shapes, smooth_minimum

STILL = Pose(1, 1., np.zeros(3), np.zeros(3))
SHAPES = [
    Ball((5, -3, 2), (20, 12, 9), (20, -30, 40)),
    Ball((5, -3, 2), (20, 18, 9), (20, -30, 40), power=5),
    Tube([(-20, 0, 0, 6), (0, 15, 5, 9), (20, 0, -5, 3)]),
    Tube([(-20, 0, 0), (0, 15, 5), (20, 0, -5)], 8, flat=(1, 1.4, .8)),
    CurvedPlate([[(-20, -10, 0), (20, -10, 4)], [(-15, 5, 6), (0, 8, 3), (18, 6, 0)], [(0, 20, 0)]], [2, 3, 4]),
]
TURNED = Pose(-1, 1.2, np.array([3., -2, 1]), np.array([1., 2, 3]))


def some_points(n=4000):
    return np.random.default_rng(0).uniform(-50, 50, (3, n, 1)).astype(np.float32)


@pytest.mark.parametrize("pose", [STILL, TURNED])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_inside_beyond_the_box(shape, pose):
    points = some_points()
    for atom in shape.atoms(pose):
        inside = atom.distance(points)[:, 0] < 0
        inner = points[:, inside, 0].T
        assert (inner >= atom.low - 1e-3).all() and (inner <= atom.high + 1e-3).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_right_side_mirrors_the_left(shape):
    points = some_points()
    mirrored = points*np.float32([-1, 1, 1])[:, None, None]
    left = np.min([atom.distance(points) for atom in shape.atoms(STILL)], 0)
    right = np.min(
        [atom.distance(mirrored) for atom in shape.atoms(Pose(-1, 1., np.zeros(3), np.zeros(3)))], 0
    )
    np.testing.assert_allclose(left, right, atol=1e-3)


def test_a_capsule_is_as_far_as_its_segment():
    start, end = np.array([[-10., 2, 3]]), np.array([[14., -6, 8]])
    capsule, = Chain(start, end, [4.], [4.]).atoms(STILL)
    points = some_points(200)
    along = end[0] - start[0]
    share = np.clip((points[:, :, 0].T - start[0]) @ along/(along @ along), 0, 1)
    nearest = start[0] + share[:, None]*along
    expected = np.linalg.norm(points[:, :, 0].T - nearest, axis=1) - 4
    np.testing.assert_allclose(capsule.distance(points)[:, 0], expected, atol=1e-3)


def test_a_triangle_is_as_far_as_its_nearest_point():
    corners = np.array([(-10., -5, 0), (12, -8, 5), (3, 14, -4)])
    plate, = CurvedPlate([corners[:2], corners[2:]], 0.).atoms(STILL)
    u, v = np.meshgrid(np.linspace(0, 1, 121), np.linspace(0, 1, 121))
    u, v = u[u + v <= 1], v[u + v <= 1]
    dense = corners[0] + u[:, None]*(corners[1] - corners[0]) + v[:, None]*(corners[2] - corners[0])
    points = some_points(60)
    expected = [np.linalg.norm(dense - point, axis=1).min() for point in points[:, :, 0].T]
    np.testing.assert_allclose(plate.distance(points)[:, 0], expected, atol=.15)


def test_a_fillet_only_adds():
    a, b = np.random.default_rng(1).normal(0, 10, (2, 500))
    smooth, plain = smooth_minimum(a, b, 8.), np.minimum(a, b)
    assert (smooth <= plain).all() and (plain - smooth <= 2 + 1e-9).all()
    far = np.abs(a - b) > 8
    assert far.any() and (smooth[far] == plain[far]).all()


@pytest.mark.parametrize("region", ["limbs", "chest", "abdomen", "vessels", "muscles", "skeleton", "head"])
def test_every_file_of_shapes_can_be_read(region):
    shapes = load_shapes(region)
    assert shapes and all(shapes.values())
    points = np.concatenate([shape.points for organ in shapes.values() for shape in organ])
    assert (np.abs(points[:, 0]) < 240).all() and (points[:, 2] > -180).all() and (points[:, 2] < 930).all()
