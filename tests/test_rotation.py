"""Batched rotations against MuJoCo's, one at a time."""

import mujoco
import numpy as np
import pytest
import torch

from penspin_style import rotation

N = 64


@pytest.fixture(scope="module")
def rng():
    return torch.Generator().manual_seed(1)


@pytest.fixture(scope="module")
def quats(rng):
    """Unit quaternions (2, N, 4), float64, uniform."""
    q = torch.randn(2, N, 4, generator=rng, dtype=torch.float64)
    return q / q.norm(dim=-1, keepdim=True)


def by_mujoco(function, size, *batches):
    """Call an mju_ function for every row."""
    out = []
    for row in zip(*(np.asarray(batch) for batch in batches), strict=True):
        result = np.empty(size)
        function(result, *row)
        out.append(result)
    return torch.from_numpy(np.stack(out))


def close(a, b, atol=1e-14):
    torch.testing.assert_close(a, b, atol=atol, rtol=0.0)


def test_multiply_is_mujocos(quats):
    p, q = quats
    close(rotation.multiply(p, q), by_mujoco(mujoco.mju_mulQuat, 4, p, q))


def test_conjugate_is_mujocos_and_undoes_a_rotation(quats):
    p, _ = quats
    close(rotation.conjugate(p), by_mujoco(mujoco.mju_negQuat, 4, p))
    identity = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(N, 4)
    close(rotation.multiply(p, rotation.conjugate(p)), identity)


def test_rotate_is_mujocos(quats, rng):
    v = torch.randn(N, 3, generator=rng, dtype=torch.float64)
    expected = by_mujoco(lambda out, q, v: mujoco.mju_rotVecQuat(out, v, q), 3, quats[0], v)
    close(rotation.rotate(quats[0], v), expected)


def test_from_axis_angle_is_mujocos(rng):
    axis = torch.randn(N, 3, generator=rng, dtype=torch.float64)
    axis = axis / axis.norm(dim=1, keepdim=True)
    angle = 4.0 * np.pi * (torch.rand(N, generator=rng, dtype=torch.float64) - 0.5)
    expected = by_mujoco(mujoco.mju_axisAngle2Quat, 4, axis, angle)
    close(rotation.from_axis_angle(axis, angle), expected)


def test_matrix_from_axis_angle_is_the_quaternions(rng):
    axis = rotation.random_unit_vector((N, 2), rng).double()
    axis = axis / axis.norm(dim=-1, keepdim=True)
    angle = torch.linspace(-4.0, 4.0, 2 * N, dtype=torch.float64).unflatten(0, (N, 2))
    wanted = rotation.to_matrix(rotation.from_axis_angle(axis, angle))
    close(rotation.matrix_from_axis_angle(axis, angle), wanted)


def test_to_matrix_is_mujocos_and_turns_vectors_as_rotate_does(quats, rng):
    matrix = rotation.to_matrix(quats[0])
    close(matrix.flatten(1), by_mujoco(mujoco.mju_quat2Mat, 9, quats[0]))
    v = torch.randn(N, 3, generator=rng, dtype=torch.float64)
    close((matrix @ v[:, :, None])[:, :, 0], rotation.rotate(quats[0], v))


def test_z_axis_is_the_third_column_bit_for_bit(quats):
    p, _ = quats
    assert torch.equal(rotation.z_axis(p), rotation.to_matrix(p)[..., 2])


def test_rotation_vector_is_the_sine_of_mujocos_angle_along_its_axis(quats):
    axis_times_angle = by_mujoco(lambda out, q: mujoco.mju_quat2Vel(out, q, 1.0), 3, quats[0])
    angle = axis_times_angle.norm(dim=1, keepdim=True)
    expected = axis_times_angle / angle * torch.sin(angle)
    close(rotation.rotation_vector(rotation.to_matrix(quats[0])), expected, atol=1e-12)


def test_rotation_vector_of_a_quarter_turn_is_the_axis():
    quarter = torch.tensor([0.5**0.5, 0.0, 0.5**0.5, 0.0])
    got = rotation.rotation_vector(rotation.to_matrix(quarter))
    close(got, torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)


def test_to_rotation_vector_is_mujocos_and_the_same_for_both_signs(quats):
    def velocity(result, quat):
        mujoco.mju_quat2Vel(result, quat, 1.0)

    expected = by_mujoco(velocity, 3, quats[0])
    close(rotation.to_rotation_vector(quats[0]), expected, atol=1e-13)
    close(rotation.to_rotation_vector(-quats[0]), expected, atol=1e-13)
    assert 2.5 < expected.norm(dim=1).max() <= np.pi  # the shorter way


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-7, 1.9e-6, 2.1e-6, 1e-4, 0.1, 3.0, np.pi - 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_rotation_vector_undoes_from_axis_angle_at_any_angle(rng, angle, dtype):
    axis = rotation.random_unit_vector((N,), rng).to(dtype)
    q = rotation.from_axis_angle(axis, torch.full((N,), angle, dtype=dtype))
    rtol = 2e-6 if dtype == torch.float32 else 1e-6
    got = rotation.to_rotation_vector(q)
    torch.testing.assert_close(got, angle * axis, rtol=rtol, atol=max(1e-12, rtol * angle))


def test_order_of_products_first_the_right_one(quats, rng):
    p, q = quats
    v = torch.randn(N, 3, generator=rng, dtype=torch.float64)
    one_by_one = rotation.rotate(p, rotation.rotate(q, v))
    close(rotation.rotate(rotation.multiply(p, q), v), one_by_one)


def test_leading_dimensions_are_kept(quats):
    q = quats[0].view(4, 2, 8, 4).float()
    assert rotation.multiply(q, q).shape == (4, 2, 8, 4)
    assert rotation.to_matrix(q).shape == (4, 2, 8, 3, 3)
    assert rotation.rotate(q, torch.ones(4, 2, 8, 3)).shape == (4, 2, 8, 3)
    assert rotation.rotation_vector(rotation.to_matrix(q)).shape == (4, 2, 8, 3)
    angle = torch.ones(4, 2)
    assert rotation.from_axis_angle(torch.ones(4, 2, 3), angle).shape == (4, 2, 4)
    assert rotation.multiply(q, q).dtype == torch.float32


def test_random_directions_are_unit_uniform_and_reproducible():
    v = rotation.random_unit_vector((200, 100), torch.Generator().manual_seed(5))
    again = rotation.random_unit_vector((200, 100), torch.Generator().manual_seed(5))
    assert torch.equal(v, again)
    flat = v.view(-1, 3)
    close(flat.norm(dim=1), torch.ones(20000), atol=1e-5)
    # on the sphere each coordinate is uniform on [-1, 1]: mean 0, variance 1/3, fourth moment 1/5
    assert flat.mean(dim=0).abs().max() < 4 * (1 / 3 / 20000) ** 0.5
    close((flat**2).mean(dim=0), torch.full((3,), 1 / 3), atol=0.01)
    close((flat**4).mean(dim=0), torch.full((3,), 1 / 5), atol=0.01)
