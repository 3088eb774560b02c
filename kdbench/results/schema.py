"""The columns of every kind of row, and the groups of columns that kinds share.

When SCHEMA_VERSION changes:
- A new column does not change it. Older rows lack the column and read as null: a hole in a report. An older
  kdbench refuses a file with the new column, and names it.
- A column that goes, or gets another name, type, unit or meaning, raises it, and `store.read` has to convert
  the older rows. An older kdbench refuses rows of a higher version.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from kdbench.metrics.curves import CURVE_COLUMNS
from kdbench.metrics.exact import METRICS
from kdbench.metrics.legacy import LEGACY_METRICS

SCHEMA_VERSION = 1
STATUSES = ("ok", "failed", "timeout", "oom")
GIVEN = "given by the user, not measured here"  # the `neighbours` of a timing of another program
TRIAL_STATUSES = ("running", "ok", "failed", "oom")

# Groups of columns, each written once: the schemas and the code that fills rows both use them.
RECIPE = ("method", "config", "dataset", "setting")
IDENTITY = (*RECIPE, "category", "categories", "dataset_categories", "fingerprint", "seed", "profile")
MEASURED = (*METRICS, "mad")
MACHINE = ("device", "device_name", "driver", "num_threads", "host")
VERSIONS = tuple(
    f"{name}_version" for name in ("kdbench", "python", "torch", "torchvision", "timm", "pillow")
)
CODE = ("git_commit", "git_dirty", *VERSIONS)

_TEXT, _WHOLE, _REAL = pa.string(), pa.int64(), pa.float64()
_TEXTS, _WHOLES, _REALS = pa.list_(_TEXT), pa.list_(_WHOLE), pa.list_(_REAL)

# One row per category of a cell. Frozen by tests/results/test_results.py.
ROW_SCHEMA = pa.schema(
    [
        # what was asked for
        ("schema_version", _WHOLE),
        ("cell_id", _TEXT),
        ("run_id", _TEXT),
        ("attempt_id", _TEXT),  # the same in all files of one attempt; null in older rows
        ("method", _TEXT),
        ("config", _TEXT),  # JSON
        ("dataset", _TEXT),
        ("setting", _TEXT),
        ("category", _TEXT),
        ("categories", _TEXTS),  # that the model was trained on
        ("dataset_categories", _TEXTS),  # that the dataset has
        ("texture", pa.bool_()),
        ("fingerprint", _TEXT),
        ("split_sha256", _TEXT),  # of the file that lists the training images, if there is one
        ("seed", _WHOLE),
        ("profile", _TEXT),
        ("selection", _TEXT),  # the rule that chose the checkpoint: heldout, last, or test (never ranked)
        # how it was evaluated
        ("preset", _TEXT),
        ("metric_version", _WHOLE),
        ("evaluation_size", _WHOLE),
        ("mask_rule", _TEXT),
        ("score_pooling", _TEXT),
        ("pro_limit", _REAL),
        ("sigma", _REAL),
        # how it finished
        ("status", _TEXT),
        ("error", _TEXT),
        # the results, as fractions; null where there is none
        *((name, _REAL) for name in MEASURED),
        *((name, _REAL) for name in LEGACY_METRICS),  # only with the preset of that name
        ("num_train", _WHOLE),
        ("num_heldout", _WHOLE),
        ("num_test", _WHOLE),
        ("num_defective", _WHOLE),
        ("num_unmarked", _WHOLE),  # defects with an empty mask, kept out of the pixel metrics
        ("num_regions", _WHOLE),
        ("num_large_masks", _WHOLE),  # mark more than half of their image: inverted, or large defects
        ("large_masks_accepted", pa.bool_()),  # by --large-masks
        ("num_steps", _WHOLE),
        ("best_epoch", _WHOLE),
        ("epoch_loss", _REALS),
        ("epoch_heldout", _REALS),
        # terms of the loss at a few steps: four lists of equal length
        ("term_steps", _WHOLES),
        ("term_names", _TEXTS),  # a term of the loss, or another number that the method observes
        ("term_values", _REALS),
        ("term_gradients", _REALS),  # norm over all trained parameters; null where not measured
        # what it cost
        ("prepare_s", _REAL),
        ("train_s", _REAL),
        ("resumed_at_epoch", _WHOLE),  # where the training went on after its worker was lost, the last time
        ("evaluate_s", _REAL),
        ("num_parameters", _WHOLE),  # teacher and detector, at inference
        ("num_trained_parameters", _WHOLE),
        ("flops", _WHOLE),  # of one image at inference, teacher included; a multiply-add counts 2
        ("peak_memory_bytes", _WHOLE),
        ("peak_ram_bytes", _WHOLE),
        ("device_memory_bytes", _WHOLE),
        # with what
        ("method_sha256", _TEXT),  # of the files of its package that the method needs
        ("outside_sha256", _TEXT),  # of the maps and scores, if another program made them; null of our own
        ("backbone", _TEXT),
        ("teacher_source", _TEXT),
        ("teacher_sha256", _TEXT),
        ("teacher_cache", _TEXT),
        ("precision", _TEXT),
        ("compiled", _TEXT),  # whether torch compiled the losses: yes, no, or no and why not
        ("device", _TEXT),
        ("device_name", _TEXT),
        ("driver", _TEXT),
        ("num_threads", _WHOLE),
        ("host", _TEXT),
        ("started_at", _TEXT),
        ("git_commit", _TEXT),
        ("git_dirty", pa.bool_()),
        *((name, _TEXT) for name in (*VERSIONS, "ray_version")),
    ]
)


def picked(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The values of these columns; KeyError for one that is not there."""
    return {name: values[name] for name in names}


def _as_rows_have(*names: str) -> Iterator[pa.Field]:
    """The fields of these columns of ROW_SCHEMA, so that a column has one type everywhere."""
    return (ROW_SCHEMA.field(name) for name in names)


# One row per test image of a cell that succeeded.
SCORE_SCHEMA = pa.schema(
    [
        *_as_rows_have("cell_id", "attempt_id"),
        ("category", _TEXT),
        ("image", _TEXT),
        ("defect", _TEXT),
        ("label", pa.bool_()),
        ("image_score", _REAL),
    ]
)

# One row per normal image that the training held out, scored by the final detector.
NORMAL_SCHEMA = pa.schema(
    [SCORE_SCHEMA.field(name) for name in ("cell_id", "attempt_id", "category", "image", "image_score")]
)

# One row per category and measured epoch of a training: the detector as it was after that epoch.
EPOCH_SCHEMA = pa.schema(
    [
        *_as_rows_have("cell_id", "attempt_id", "category"),
        ("epoch", _WHOLE),
        ("epochs", _WHOLE),  # of the whole training
        *_as_rows_have(*MEASURED),
    ]
)

# One row per trivial number and category of a dataset that was audited.
SHORTCUT_SCHEMA = pa.schema(
    [
        *_as_rows_have("schema_version", "dataset", "category", "fingerprint"),
        ("number", _TEXT),  # its name
        ("image_auroc", _REAL),  # of the number as it is: 0 tells as much as 1
        ("p", _REAL),  # two-sided, by permutation of the labels
        ("p_holm", _REAL),  # corrected for all numbers of all categories that were audited together
        ("flagged", pa.bool_()),  # outside of what chance allows
    ]
)

# One row per category of a cell that succeeded: points of its ROC and PRO curves.
CURVE_SCHEMA = pa.schema(
    [
        *_as_rows_have("cell_id", "attempt_id", "category"),
        *((name, pa.list_(pa.float32())) for name in CURVE_COLUMNS),
    ]
)

# One row per test image whose anomaly map was kept as a picture.
PICTURE_SCHEMA = pa.schema(
    [
        *_as_rows_have("cell_id", "attempt_id", "category"),
        ("category_fingerprint", _TEXT),  # names the file of its inputs
        ("image", _TEXT),
        ("anomaly_map", pa.binary()),  # PNG, 8-bit grey
        ("lowest", _REAL),  # the value of black
        ("highest", _REAL),  # the value of white
        (
            "grey_power",
            _REAL,
        ),  # of the grey (0 to 1) that gives the value between them; null in older rows: 1
    ]
)

# One row per test image of a category; all cells share them.
INPUT_SCHEMA = pa.schema(
    [
        ("category_fingerprint", _TEXT),
        ("category", _TEXT),
        ("image", _TEXT),
        ("width", _WHOLE),  # of the original, upright
        ("height", _WHOLE),
        ("input", pa.binary()),  # JPEG
        ("mask", pa.binary()),  # PNG, bilevel; null without one
    ]
)

# One row per category of a multiclass detector that was probed.
PROBE_SCHEMA = pa.schema(
    [
        *_as_rows_have("cell_id", "attempt_id", *IDENTITY, "preset", "metric_version", "teacher_sha256"),
        ("num_images", _WHOLE),
        ("mixup_image_auroc", _REAL),
        ("cutpaste_image_auroc", _REAL),
        ("cutpaste_pixel_auroc", _REAL),
        *_as_rows_have("device", *CODE),
    ]
)

# One row per detector, device, runtime, batch size and precision.
LATENCY_SCHEMA = pa.schema(
    [
        *_as_rows_have("schema_version", "cell_id", "run_id", *RECIPE),
        *_as_rows_have("seed", "profile", "backbone", "teacher_sha256"),
        ("runtime", _TEXT),  # null in older rows: torch
        ("runtime_version", _TEXT),
        ("why_not", _TEXT),  # why there are no times, if there are none
        ("batch_size", _WHOLE),
        ("precision", _TEXT),
        ("num_warmup", _WHOLE),
        ("times_ms", _REALS),  # of each timed batch: from images on the device to maps and scores on it
        ("p50_ms", _REAL),
        ("p90_ms", _REAL),
        ("p99_ms", _REAL),
        ("images_per_s", _REAL),  # from the median
        ("copy_ms", _REAL),  # median of the copy from host to device, not in the times; null on a CPU
        *_as_rows_have("num_parameters", "flops", "peak_memory_bytes"),
        ("busy", pa.bool_()),  # something else used the device or the node: never ranked
        ("neighbours", _TEXT),  # names of those programs
        *_as_rows_have(*MACHINE, "started_at", *CODE),
    ]
)

# One row per category of a cell, runtime and precision: the test images through the exported detector.
DEPLOYED_SCHEMA = pa.schema(
    [
        *_as_rows_have("schema_version", "cell_id", "run_id", "attempt_id", *IDENTITY),
        *_as_rows_have("preset", "metric_version"),
        *_as_rows_have("teacher_sha256"),
        *(LATENCY_SCHEMA.field(name) for name in ("runtime", "runtime_version", "why_not", "precision")),
        ("num_calibration", _WHOLE),  # normal training images that set the ranges of int8; null without int8
        *_as_rows_have(*MEASURED, "num_test"),
        ("images", _TEXTS),  # as in the scores
        ("image_scores", _REALS),
        *_as_rows_have(*MACHINE, "started_at", *CODE),
    ]
)

# One row per trial of a sweep.
TRIAL_SCHEMA = pa.schema(
    [
        ("schema_version", _WHOLE),
        ("trial_id", _TEXT),
        ("sweep_id", _TEXT),
        ("method", _TEXT),
        ("config", _TEXT),  # JSON
        ("searched", _TEXT),  # JSON: the keys that the sweep searches, with this trial's values
        ("is_default", pa.bool_()),  # the configuration that the sweep begins with
        *_as_rows_have("dataset", "setting", "categories", "dataset_categories"),
        ("fingerprints", _TEXTS),  # of the images of each model of the trial
        ("seeds", _WHOLES),
        ("profile", _TEXT),
        ("search", _TEXT),
        ("scheduler", _TEXT),
        ("selection", _TEXT),  # images of the objective: synthetic (defects on held-out normals), or test
        ("objective", _TEXT),  # the metric's name
        ("objective_value", _REAL),  # of the detector that is kept; of the last report if stopped early
        ("objective_epochs", _WHOLES),  # at which it was reported
        ("objective_history", _REALS),
        ("metric_version", _WHOLE),
        ("status", _TEXT),
        ("error", _TEXT),
        ("epochs", _WHOLE),  # of a training to its end
        ("epochs_trained", _WHOLE),
        ("stopped_early", pa.bool_()),
        ("num_train", _WHOLE),
        ("num_heldout", _WHOLE),  # normal images not trained on; each is judged as it is and with a defect
        ("trial_s", _REAL),
        ("peak_memory_bytes", _WHOLE),
        ("started_at", _TEXT),
        ("ended_at", _TEXT),
        *_as_rows_have("backbone", "teacher_source", "teacher_sha256", "precision"),
        *_as_rows_have(*MACHINE, *CODE, "ray_version"),
    ]
)

# One row per category and seed of a trial: the test scores of its detector, computed after its sweep.
AUDIT_SCHEMA = pa.schema(
    [
        *(TRIAL_SCHEMA.field(name) for name in ("schema_version", "trial_id", "sweep_id")),
        *_as_rows_have(*IDENTITY, "selection", "preset", "metric_version", *MEASURED),
        *_as_rows_have("num_test", "num_defective", "evaluate_s", "teacher_sha256", "precision"),
        *_as_rows_have("device", "device_name", "num_threads", "host", *CODE),
    ]
)
