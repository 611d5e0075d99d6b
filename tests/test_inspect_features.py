"""`mert inspect` on feature stores: every number against a naive one over the same rows."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from audio_files import noise, write_audio
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from mert_foundry.pipeline.features.plan import StoreLayout
from mert_foundry.pipeline.features.resume import KIND, SCHEMA_VERSION, description_digest, prepare_store
from mert_foundry.pipeline.features.store import finish_store, publish_part
from mert_foundry.pipeline.inspection import feature_summary
from mert_foundry.pipeline.inspection.feature_summary import read_features, sample_tracks
from mert_foundry.pipeline.inspection.neighbours import project
from mert_foundry.pipeline.manifest.rows import load_manifest
from mert_foundry.pipeline.manifest.scan import ManifestConfig, scan, write_manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*not part in the Zarr format 3 specification.*:UserWarning")

LAYERS, DIM = (0, 2, 5), 24
LENGTHS = [40, 75, 30, 120, 55, 80]
DEAD = [3, 7, 11]  # dimensions of the last layer
DROPPED = "track-2"


def frames() -> np.ndarray:
    """Rows that differ by track: a direction a group, noise, constant dimensions in the last layer; NaN if dropped."""
    generator = np.random.default_rng(0)
    rows = []
    for track, length in enumerate(LENGTHS):
        centre = 4 * np.eye(DIM)[track % 2] + 0.5 * generator.standard_normal(DIM)
        rows.append(centre + generator.standard_normal((length, len(LAYERS), DIM)) * [[[1.0]], [[0.5]], [[0.2]]][0])
    values = np.concatenate(rows).astype(np.float32)
    values[:, 2, DEAD] = 0.25
    start = sum(LENGTHS[:2])
    values[start : start + LENGTHS[2]] = np.nan
    return values


def write_store(location: str, pooled: bool = False, finish: bool = True, keys: list[str] | None = None) -> None:
    """A store of six tracks in two groups, the third of them dropped; `keys` names others, without groups."""
    groups = [""] * 6 if keys else ["even", "odd"] * 3
    keys = keys or [f"track-{track}" for track in range(6)]
    values, offsets = frames(), np.cumsum([0, *LENGTHS])[:-1]
    arrays = {"features": values}
    if pooled:
        means = np.stack(
            [values[start : start + length].mean(axis=0) for start, length in zip(offsets, LENGTHS, strict=True)]
        )
        arrays = {"mean": means}
    rows = len(next(iter(arrays.values())))
    layout = StoreLayout(
        arrays=tuple(arrays),
        row="track" if pooled else "frame",
        rows=rows,
        layers=LAYERS,
        width=DIM,
        dtype="float32",
        part_rows=rows,
        chunk_rows=rows,
    )
    description = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "frame_rate": 75.0,
        "model": {"fingerprint": "e" * 64},
        "settings": {"pooling": "mean" if pooled else "none"},
    }
    prepare_store(location, description, overwrite=False)
    digest, dropped = description_digest(description), {keys[2]: "changed: once it was another"}
    publish_part(location, layout, 0, arrays, digest=digest, dropped=dropped, backend={})
    if finish:
        table = {
            "key": keys,
            "seconds": [length / 75 for length in LENGTHS],
            "offset": offsets.tolist(),
            "length": LENGTHS,
            "split": ["train"] * 6,
            "group": groups,
        }
        finish_store(location, layout, description, table, dropped)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store of frames; read only."""
    folder = tmp_path_factory.mktemp("features") / "frames.zarr"
    write_store(str(folder))
    return folder


def test_statistics_of_each_layer_against_naive_ones(store, say):
    code, out, err = say(store, "--json")
    assert code == 0, err
    found = json.loads(out)
    rows = frames()[~np.isnan(frames()[:, 0, 0])].astype(np.float64)
    assert (found["kind"], found["rows"], found["rows_read"], found["tracks_read"]) == ("features", 400, 370, 5)
    assert found["dropped"] == {DROPPED: "changed: once it was another"}
    assert [layer["layer"] for layer in found["layers"]] == list(LAYERS)
    for place, layer in enumerate(found["layers"]):
        values = rows[:, place]
        assert layer["mean"] == pytest.approx(values.mean())
        assert layer["standard_deviation"] == pytest.approx(values.std())
        assert layer["largest"] == pytest.approx(np.abs(values).max())
        singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
        shares = singular[singular > 1e-6 * singular[0]] / singular.sum()
        assert layer["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-4)
        assert layer["dead_share"] == pytest.approx(len(DEAD) / DIM if place == 2 else 0)
    code, out, _ = say(store)
    assert code == 0 and "12.5%" in out and f"  {DROPPED}  changed: once it was another\n" in out


def test_pooled_features_and_object_stores(store, say):
    for pooled in (False, True):
        write_store(f"memory://inspected-{pooled}.zarr", pooled)
    code, out, err = say("memory://inspected-True.zarr", "--json")
    assert code == 0, err
    found = json.loads(out)
    means = read_features(str(store)).vectors
    assert (found["array"], found["rows"], found["rows_read"]) == ("mean", 6, 5)
    assert found["layers"][1]["mean"] == pytest.approx(means[:, 1].mean(), rel=1e-5)
    remote, local = read_features("memory://inspected-False.zarr"), read_features(str(store))
    assert remote.summary.layers == local.summary.layers and (remote.vectors == local.vectors).all()


def test_neighbours_against_sklearn(store, say):
    read = read_features(str(store))
    code, out, _ = say(store, "--track", "track-3", "--json")
    found = json.loads(out)
    assert code == 0 and (found["key"], found["group"], found["compared"]) == ("track-3", "odd", 4)

    def naive(vectors: np.ndarray) -> list[tuple[str, float]]:
        scaled = StandardScaler().fit_transform(vectors)
        place = read.keys.index("track-3")
        cosines = {
            key: scaled[other] @ scaled[place] / np.linalg.norm(scaled[other]) / np.linalg.norm(scaled[place])
            for other, key in enumerate(read.keys)
            if other != place
        }
        return sorted(cosines.items(), key=lambda item: -item[1])

    for neighbours, vectors in [
        (found["nearest"], read.vectors.reshape(5, -1)),
        *((found["by_layer"][str(layer)], read.vectors[:, place]) for place, layer in enumerate(LAYERS[:2])),
    ]:
        wanted = naive(vectors)
        assert [each["key"] for each in neighbours] == [key for key, _ in wanted]
        assert [each["similarity"] for each in neighbours] == pytest.approx([value for _, value in wanted])
    assert found["nearest"][0]["group"] == "odd"
    code, out, _ = say(store, "--track", "track-3")
    assert code == 0 and out.startswith("track track-3 of group odd, among 4 others")
    for key, words in {"nobody": "no track 'nobody'", DROPPED: "changed: once it was another"}.items():
        code, _, err = say(store, "--track", key)
        assert code == 1 and words in err


def test_projection_against_sklearn():
    vectors = np.random.default_rng(1).standard_normal((30, 8)) * np.arange(1, 9)
    places, shares = project(vectors)
    reference = PCA(2).fit(vectors)
    assert np.allclose(np.abs(places), np.abs(reference.transform(vectors)))
    assert np.allclose(shares, reference.explained_variance_ratio_)
    places, shares = project(np.ones((3, 4)))
    assert (places == 0).all() and (shares == 0).all()
    assert project(np.ones((1, 4)))[0].shape == (1, 2)


def test_a_large_store_is_sampled(store, tmp_path, say, monkeypatch):
    assert sample_tracks(list("abcdefgh"), [""] * 8, 4) == [0, 2, 4, 6]
    assert sample_tracks(list("abcdefgh"), [""] * 8, 4, ["d"]) == [0, 2, 3, 4, 6]
    monkeypatch.setattr(feature_summary, "MOST_FRAME_TRACKS", 2)
    monkeypatch.setattr(feature_summary, "MOST_VALUES", 2 * len(LAYERS) * DIM * 10)
    read = read_features(str(store))
    assert (read.summary.tracks_read, read.summary.rows_read) == (2, 20)
    code, _, err = say(store, "--html", tmp_path / "page.html", "--keys", "track-5,track-3")
    assert code == 0 and "track-5, of odd" in (tmp_path / "page.html").read_text(), err
    first = frames()[15:25].astype(np.float64)  # the middle ten of forty frames
    assert np.allclose(read.vectors[0], first.mean(axis=0))


def test_a_long_track_is_read_piece_by_piece(store, monkeypatch):
    whole = read_features(str(store))
    monkeypatch.setattr(feature_summary, "READ_AT_ONCE", 7)
    pieces = read_features(str(store))
    assert np.allclose(pieces.vectors, whole.vectors) and pieces.summary.rows_read == whole.summary.rows_read
    for one, other in zip(pieces.summary.layers, whole.summary.layers, strict=True):
        assert one.model_dump() == pytest.approx(other.model_dump())


def test_missing_chunks_are_not_taken_for_features(store, tmp_path, say):
    damaged = shutil.copytree(store, tmp_path / "damaged.zarr")
    shutil.rmtree(damaged / "features" / "c")
    code, _, err = say(damaged)
    assert code == 1 and "damaged.zarr: a track that was not dropped has rows of NaN" in err


@pytest.mark.parametrize(
    "name", ["key", "seconds", "offset", "length", "split", "group", "dropped", "layer", "features"]
)
def test_a_missing_array_is_named(store, tmp_path, say, name):
    damaged = shutil.copytree(store, tmp_path / "damaged.zarr")
    root = json.loads((damaged / "zarr.json").read_text())
    del root["consolidated_metadata"]["metadata"][name]
    (damaged / "zarr.json").write_text(json.dumps(root))
    code, _, err = say(damaged)
    assert code == 1 and err.startswith(f"error: {damaged}: damaged, the array {name} ") and err.count("\n") == 1
    if name != "features":
        # Its metadata is there, its values are not: zarr alone would read zeros and empty texts.
        lost = shutil.copytree(store, tmp_path / "lost.zarr")
        shutil.rmtree(lost / name)
        code, _, err = say(lost)
        assert code == 1 and err == f"error: {lost}: damaged, the array {name} is missing\n"


def test_a_store_whose_arrays_do_not_fit_or_whose_attributes_are_gone_is_said(store, tmp_path, say):
    other = shutil.copytree(store, tmp_path / "other.zarr")
    group = zarr.open_group(other, mode="r+", use_consolidated=False)
    group.create_array("seconds", data=np.ones(2), overwrite=True)
    zarr.consolidate_metadata(group.store)
    code, _, err = say(other)
    assert code == 1 and err == f"error: {other}: damaged, 2 values in the array seconds, 6 in key\n"
    group.create_array("seconds", data=np.ones(6), overwrite=True)
    group.create_array("length", data=np.arange(6), overwrite=True)
    zarr.consolidate_metadata(group.store)
    code, _, err = say(other)
    assert code == 1 and f"{other}: damaged, 400 rows and 3 layers in features, 15 and 3 in the table" in err
    for name in ("frame_rate", "model", "settings"):
        bare = zarr.create_group(str(tmp_path / f"{name}.zarr"), attributes={**group.attrs})
        del bare.attrs[name]
        code, _, err = say(tmp_path / f"{name}.zarr")
        assert code == 1 and err == f"error: {tmp_path / name}.zarr: damaged, the attribute {name} is missing\n"


def test_two_stores_are_not_shown_together(store, say):
    code, _, err = say(store, store)
    assert code == 2 and err == f"only runs are shown together; {store} is a feature store\n"


def test_groups_come_from_the_manifest_where_the_store_has_none(tmp_path, say):
    for track in range(6):
        write_audio(tmp_path / "audio" / ("calm", "loud")[track % 2] / f"{track}.wav", noise(1, seed=track))
    config = ManifestConfig(root=str(tmp_path / "audio"), out=str(tmp_path / "manifest"), min_seconds=0.1)
    write_manifest(config, scan(config))
    groups = {track.key: track.group for track in load_manifest(str(tmp_path / "manifest")).tracks}
    write_store(str(tmp_path / "features.zarr"), keys=list(groups))
    first, *_ = groups
    code, out, err = say(tmp_path / "features.zarr", "--track", first, "--manifest", tmp_path / "manifest", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["group"] == groups[first]
    assert all(each["group"] == groups[each["key"]] for each in found["nearest"]) and len(found["nearest"]) == 4
    page = tmp_path / "page.html"
    assert (
        say(tmp_path / "features.zarr", "--html", page)[0] == 0 and "--manifest names the manifest" in page.read_text()
    )
    assert say(tmp_path / "features.zarr", "--html", page, "--manifest", tmp_path / "manifest")[0] == 0
    assert (
        "--manifest names the manifest" not in page.read_text() and f"{first}, of {groups[first]}" in page.read_text()
    )
    write_store(str(tmp_path / "other.zarr"))
    code, _, err = say(tmp_path / "other.zarr", "--manifest", tmp_path / "manifest")
    assert code == 1 and "it has no track track-0" in err


def test_a_shifted_copy_is_of_the_group_of_its_track(tmp_path, say):
    for track in range(2):
        write_audio(tmp_path / "audio" / ("calm", "loud")[track] / f"{track}.wav", noise(1, seed=track))
    config = ManifestConfig(root=str(tmp_path / "audio"), out=str(tmp_path / "manifest"), min_seconds=0.1)
    write_manifest(config, scan(config))
    groups = {track.key: track.group for track in load_manifest(str(tmp_path / "manifest")).tracks}
    keys = [f"{key}{suffix}" for key in groups for suffix in ("", "-down2", "-up11")]
    write_store(str(tmp_path / "features.zarr"), keys=keys)
    found = say(tmp_path / "features.zarr", "--track", keys[1], "--manifest", tmp_path / "manifest", "--json")[1]
    nearest = {each["key"]: each["group"] for each in json.loads(found)["nearest"]}
    assert nearest and all(nearest[key] == groups[key.removesuffix("-down2").removesuffix("-up11")] for key in nearest)


def test_what_is_no_finished_store_is_said(tmp_path, say):
    write_store(str(tmp_path / "open.zarr"), finish=False)
    code, _, err = say(tmp_path / "open.zarr")
    assert code == 1 and "not finished" in err
    zarr.create_group(str(tmp_path / "other.zarr"), attributes={"kind": "weather"})
    code, _, err = say(tmp_path / "other.zarr")
    assert code == 1 and "weather" in err
    (tmp_path / "bad.zarr").mkdir()
    (tmp_path / "bad.zarr" / "zarr.json").write_text("{")
    code, _, err = say(tmp_path / "bad.zarr")
    assert code == 1 and "bad.zarr" in err and "Traceback" not in err


def test_the_page_of_a_store(store, tmp_path, say):
    code, _, err = say(store, "--html", tmp_path / "page.html", "--keys", "track-3,track-0")
    assert code == 0, err
    text = (tmp_path / "page.html").read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    titles = [plot["title"] for plot in data["plots"].values()]
    assert titles == [
        "Mean and standard deviation",
        "Largest magnitude",
        "Effective rank",
        "Dead dimensions",
        "Layer 0",
        "Layer 2",
        "Layer 5",
    ]
    points = next(plot for plot in data["plots"].values() if plot["title"] == "Layer 0")
    assert {series["label"]: sorted(series["names"]) for series in points["series"]} == {
        "even": ["track-0", "track-4"],
        "odd": ["track-1", "track-3", "track-5"],
    }
    assert text.index("track-3, of odd") < text.index("track-0, of even")
