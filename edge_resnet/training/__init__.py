"""Training loops on Lightning Fabric: float training, quantization-aware training, fine-tuning.

`fit` trains a `Task` on the train split: resumable to the bit, on one process or on several.
"""

from edge_resnet.training.checkpoint import identity_of, weights_digest
from edge_resnet.training.data import Portion
from edge_resnet.training.launch import WorkerDone, is_worker, leave_worker
from edge_resnet.training.loop import check_start, fit
from edge_resnet.training.optimizer import decayed, one_cycle
from edge_resnet.training.ranks import mean_over_ranks, var_mean_over_ranks
from edge_resnet.training.task import FloatTask, LiveMetrics, Task, check_logits, show_on
from edge_resnet.training.weights import save_trained, trained_path

__all__ = [
    "FloatTask",
    "LiveMetrics",
    "Portion",
    "Task",
    "WorkerDone",
    "check_logits",
    "check_start",
    "decayed",
    "fit",
    "identity_of",
    "is_worker",
    "leave_worker",
    "mean_over_ranks",
    "one_cycle",
    "save_trained",
    "show_on",
    "trained_path",
    "var_mean_over_ranks",
    "weights_digest",
]
