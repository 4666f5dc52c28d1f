"""U²-Net† trained on four fifths of ECSSD and tested on the last: from scratch, and from the published weights.

    python benchmarks/salient.py --data ECSSD --scale cpu --runs runs/salient

Learned: 0001 to 0720; 0721 to 0800 choose the best epoch; reported: 0801 to 1000. ECSSD is a test set, and far smaller
than DUTS: these rows show that training works, not what the model can do. The log's lines and the figures are those of
examples/train_salient.py: MAE and the maximum of F (β² = 0.3) over the mean precision and recall curves, of the
probabilities as they are. The rows to compare are the last epoch's.

--scale full is for a GPU; --scale cpu is a smaller run: smaller pictures and fewer epochs, said in each row.
"""

from __future__ import annotations

from _training import Row, arguments, run_rows

COMMON = ["--dataset", "ecssd", "--holdout", "0.1", "--model", "u2net_lite", "--batch-size", "8", "--cache", "memory"]

SCALES = {
    "full": [
        Row("from scratch", ["--epochs", "120", "--lr", "1e-3", "--warmup", "3", "--ema", "0.999"], main=True),
        Row("from scratch, hybrid loss", ["--epochs", "120", "--warmup", "3", "--ema", "0.999", "--loss", "hybrid"]),
        Row(
            "fine-tuned",
            ["--weights", "duts", "--norm", "frozen_batch", "--epochs", "10", "--lr", "2e-6", "--warmup", "0.5"],
            main=True,
        ),
    ],
    "cpu": [
        Row("fine-tuned", ["--weights", "duts", "--epochs", "1", "--lr", "5e-5", "--warmup", "0.2", "--ema", "0.999"]),
        Row(
            "fine-tuned, statistics fixed",
            [
                *("--weights", "duts", "--norm", "frozen_batch", "--train-names", "0521:0800", "--holdout", "0.2857"),
                *("--epochs", "1", "--lr", "2e-5", "--warmup", "0.2", "--ema", "0.999"),
            ],
        ),
        Row(
            "fine-tuned, statistics fixed, lr 2e-6",
            [
                *("--weights", "duts", "--norm", "frozen_batch", "--train-names", "0521:0800", "--holdout", "0.2857"),
                *("--epochs", "1", "--lr", "2e-6", "--warmup", "0.2"),
            ],
        ),
        Row(
            "from scratch, 160 pixels",
            ["--epochs", "3", "--warmup", "1", "--resize", "160", "--crop", "144", "--amp", "bf16"],
        ),
    ],
}


def main() -> None:
    parser = arguments(__doc__, "ecssd")
    args = parser.parse_args()
    found = run_rows("train_salient.py", SCALES[args.scale], COMMON, args)
    for row in found:
        print(f"\n{row['row']}, seed {row['seed']}: {row['options']}")
        print(*row["log"], sep="\n")
        test = {which: row["test"][which] for which in ("last", "best") if which in row["test"]}
        for which, figures in test.items():
            print(f"test, {which} epoch: MAE {figures['mae']:.4f}, max F {figures['max_f']:.4f}")


if __name__ == "__main__":
    main()
