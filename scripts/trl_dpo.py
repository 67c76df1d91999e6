"""Writes what TRL's own DPO trainer says of settings that change a pair's loss: its first steps on a model and its pairs.

    python scripts/trl_dpo.py MODEL PAIRS.jsonl > tests/fixtures/trl_dpo.json

Everything is in float32 on the CPU, in the order of the file, whose first six rows are used; a test (tests/cli/traces.rs) compares
the losses and gradient norms of Collimate with these.
"""

import json
import os
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")

SHARED = dict(learning_rate=1e-3, max_steps=3, per_device_train_batch_size=2, lr_scheduler_type="constant")
# The settings of each run, the same for both sides.
RUNS = {
    "ld_alpha": dict(ld_alpha=0.3),
    "ld_alpha_0_ipo": dict(ld_alpha=0.0, loss_type="ipo"),
    "use_weighting": dict(use_weighting=True),
    "both": dict(ld_alpha=0.5, use_weighting=True, loss_type="nca_pair"),
    "bco_pair": dict(loss_type="bco_pair"),
}


def steps_of(model, pairs, settings):
    import torch
    from datasets import load_dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *args, **kwargs):
            return SequentialSampler(self.train_dataset)

    settings = dict(settings)
    if "loss_type" in settings:
        settings["loss_type"] = [settings["loss_type"]]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as out:
        config = DPOConfig(
            output_dir=out, max_length=None, logging_steps=1, report_to=[], bf16=False, use_cpu=True, save_strategy="no",
            gradient_checkpointing=False, disable_tqdm=True, optim="adamw_torch", **SHARED, **settings)
        trainer = InOrder(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), args=config,
            train_dataset=load_dataset("json", data_files=pairs, split="train[:6]"),
            processing_class=AutoTokenizer.from_pretrained(model))
        trainer.train()
    names = ["loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"]
    lines = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: float(line[name]) for name in names} for line in lines]


def main():
    import contextlib

    model, pairs = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        runs = {name: dict(settings=settings, steps=steps_of(model, pairs, settings)) for name, settings in RUNS.items()}
    print(json.dumps(dict(shared=SHARED, runs=runs), indent=1))


if __name__ == "__main__":
    main()
