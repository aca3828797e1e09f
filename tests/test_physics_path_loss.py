"""Path loss against numbers worked from the printed formulas, 3.5 GHz unless stated (20 lg 3.5 = 10.8814)."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from wdmoe_env.config import PathLoss
from wdmoe_env.physics.path_loss import URBAN_MACRO, URBAN_MICRO, path_loss_db, shadowing_std_db

CARRIER_HZ = 3.5e9


@pytest.mark.parametrize(
    ("law", "distance_m", "loss_db"),
    [
        # UMi: heights 10 and 1.5 m, so d3D = sqrt(d^2 + 8.5^2); breakpoint 4 x 9 x 0.5 x 3.5e9 / 3e8 = 210 m.
        ("umi_los", 10.0, 66.7610),  # 32.4 + 21 x 1.118080 + 10.8814
        ("umi_los", 100.0, 85.3142),  # 32.4 + 21 x 2.001563 + 10.8814
        ("umi_los", 210.0, 92.0554),  # 32.4 + 21 x 2.322575 + 10.8814
        ("umi_los", 211.0, 92.1378),  # 32.4 + 40 x 2.324635 + 10.8814 - 9.5 lg(210^2 + 8.5^2 = 44172.25)
        ("umi_los", 500.0, 107.1138),  # 32.4 + 40 x 2.699033 + 10.8814 - 9.5 x 4.645150
        ("umi_los", 5000.0, 147.1113),
        ("umi_nlos", 100.0, 104.6438),  # 22.4 + 35.3 x 2.001563 + 21.3 x 0.544068
        ("umi_nlos", 500.0, 129.2645),
        # UMa: heights 25 and 1.5 m, so d3D = sqrt(d^2 + 23.5^2); breakpoint 4 x 24 x 0.5 x 3.5e9 / 3e8 = 560 m.
        ("uma_los", 100.0, 83.1382),  # 28 + 22 x 2.011673 + 10.8814
        ("uma_los", 560.0, 99.3499),
        ("uma_los", 561.0, 99.3808),  # 28 + 40 x 2.749344 + 10.8814 - 9 lg(560^2 + 23.5^2 = 314152.25)
        ("uma_los", 1000.0, 109.4119),
        ("uma_nlos", 100.0, 103.0375),  # 13.54 + 39.08 x 2.011673 + 10.8814
        ("uma_nlos", 1000.0, 141.6660),
    ],
)
def test_urban_laws_at_tabulated_distances(law, distance_m, loss_db):
    assert path_loss_db(law, np.array([distance_m]), CARRIER_HZ)[0] == pytest.approx(loss_db, abs=1e-4)


def test_urban_law_at_millimetre_waves():
    # 32.4 + 21 x 2.001563 + 20 lg 28; the breakpoint has moved to 1680 m.
    assert path_loss_db("umi_los", np.array([100.0]), 28e9)[0] == pytest.approx(103.3760, abs=1e-4)


def test_breakpoint_distances():
    assert URBAN_MICRO.breakpoint_m(CARRIER_HZ) == pytest.approx(210.0)
    assert URBAN_MACRO.breakpoint_m(CARRIER_HZ) == pytest.approx(560.0)


def test_without_line_of_sight_is_never_better_than_with_it():
    # At 0.5 GHz and 10 km, 40 dB a decade has overtaken 35.3: 157.9 against 157.2 dB.
    far = np.array([10_000.0])
    assert path_loss_db("umi_nlos", far, 0.5e9) == path_loss_db("umi_los", far, 0.5e9)
    distances = np.geomspace(10, 5000, 200)
    for scenario in ("umi", "uma"):
        los, nlos = (path_loss_db(f"{scenario}_{sight}", distances, CARRIER_HZ) for sight in ("los", "nlos"))
        assert np.all(nlos >= los)


@pytest.mark.parametrize(("distance_km", "carrier_ghz"), [(0.05, 2.4), (0.1, 3.5), (1.0, 28.0)])
def test_free_space_is_the_engineers_formula(distance_km, carrier_ghz):
    expected = 92.45 + 20 * np.log10(carrier_ghz) + 20 * np.log10(distance_km)
    loss = path_loss_db("free_space", np.array([1e3 * distance_km]), carrier_ghz * 1e9)
    assert loss[0] == pytest.approx(expected, abs=0.005)


def test_log_distance_starts_from_free_space_at_one_metre():
    # Free space at 1 m and 3.5 GHz is 92.45 + 10.88 - 60 = 43.33 dB; two decades at exponent 2.7 add 54 dB.
    loss = path_loss_db("log_distance", np.array([1.0, 100.0]), CARRIER_HZ, exponent=2.7)
    np.testing.assert_allclose(loss, [43.33, 97.33], atol=0.005)
    distances = np.array([3.0, 70.0])
    np.testing.assert_allclose(
        path_loss_db("log_distance", distances, CARRIER_HZ, exponent=2.0),
        path_loss_db("free_space", distances, CARRIER_HZ),
    )


@pytest.mark.parametrize("law", get_args(PathLoss))
def test_loss_grows_with_distance_and_is_flat_below_the_least(law):
    least = 1.0 if law in ("log_distance", "free_space") else 10.0
    loss = path_loss_db(law, np.geomspace(least, 20_000, 500), CARRIER_HZ)
    assert np.all(np.diff(loss) > -0.01)  # 38.901's two slopes do not meet exactly at the breakpoint
    near = path_loss_db(law, np.array([[0.1 * least, least]]), CARRIER_HZ)
    assert near.shape == (1, 2)
    assert near[0, 0] == near[0, 1]


def test_shadowing_belongs_to_the_law():
    stds = {law: shadowing_std_db(law) for law in get_args(PathLoss)}
    assert stds == {
        "umi_los": 4.0,
        "umi_nlos": 7.82,
        "uma_los": 4.0,
        "uma_nlos": 6.0,
        "log_distance": 8.2,
        "free_space": 0.0,
    }


def test_an_unknown_law_is_one_sentence():
    with pytest.raises(ValueError, match=r"path loss law must be one of umi_los, .*, got 'rural'"):
        path_loss_db("rural", np.ones(1), CARRIER_HZ)
