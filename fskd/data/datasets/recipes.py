"""Run settings that several data sets share."""

from typing import Any


def crd_recipe(n_train: int, epochs: int = 240, crop: int = 4, flip: bool = True) -> dict[str, Any]:
    """The training of the CRD benchmark (Tian et al., ICLR 2020), resnet56 to resnet20.

    SGD with momentum 0.9, weight decay 5e-4, rate 0.05 divided by 10 after 62.5, 75 and 87.5 % of
    the steps, batches of 64, random crop and flip. Where the benchmark fixes epochs, the student's
    steps are fixed here, at those of the full training set, so that a smaller subset is not also
    trained less; ``--epochs 240`` restores the benchmark's rule. MobileNets and ShuffleNets want
    ``optim.lr=0.01``.

    Args:
        n_train: Size of the full training set.
        epochs: Passes over it.
        crop: Padding before the random crop, in pixels.
        flip: Whether images are mirrored.
    """
    optim = {"lr": 0.05, "nesterov": False, "schedule": "milestones", "batch_size": 64}
    augment = {"crop": crop, "flip": flip, "affine": 0.0}
    return {
        "student": "resnet20",
        "optim": optim,
        "budget": {"steps": epochs * n_train // 64},
        "data": {"augment": augment},
        "teacher": {
            "name": "resnet56",
            "optim": optim,
            "augment": augment,
            "budget": {"epochs": epochs},
        },
    }
