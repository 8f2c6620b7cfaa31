"""The tables of training runs that `tools/bench.py` repeats: by name, rows of (name, recipe, settings)."""

FEW = ("labelled=100", "epochs=120")
BASE = ("width=16", "epochs=40", "batch_size=16", "precision=bf16")

# The semi-supervised methods from two starting points, the original's loss and ours. One strong view and no
# feature stream for UniMatch: 3 instead of 7 times a supervised step.
ORIGINAL, OURS = ("loss=dice", "tune_rule=no"), ("loss=masked", "log_dice=yes", "tune_rule=yes")
SDC = ("confidence=sdc",)
SOFTMAX = ("loss=marginal",) + OURS[1:]  # as the recipes are now
ONE_VIEW, COLD = ("views=1", "feature_dropout=0"), ("supervised_first=no", "tau=0.95")
# A second phase half as long as the first, however few slices are annotated, as the recipe once was.
HALF = ("unlabelled_passes=0",)
SEMI = [
    ("original-attunet", "original-attunet", ()),
    ("log", "masked", ("log_dice=yes",)),
    ("log-mean-teacher", "mean-teacher", OURS),
    # both phases of the next row, the second without the unlabelled images
    ("log-longer", "unimatch", OURS + ONE_VIEW + ("consistency=0",)),
    ("log-warm-unimatch", "unimatch", OURS + ONE_VIEW),
    ("ctseg-sigmoid", "ctseg", HALF + ("loss=masked",)),  # the same with a second phase half as long
    # its first phase, where it was trained in fp32
    ("log-fp32", "masked", ("log_dice=yes", "precision=fp32")),
    ("marginal-log", "marginal", ("log_dice=yes",)),  # the first phase of the next
    ("ctseg", "ctseg", HALF),
    # what the recipe asks for now with 100 annotated
    ("ctseg-second-3", "ctseg", HALF + ("second_phase=3",)),
    ("ctseg-presence", "ctseg", HALF + ("presence=0.3",)),  # a head that says which classes are there
    ("marginal-from-phantom", "marginal-log", ()),  # with --init, see benchmarks/realct_semi
    ("marginal-mean-teacher", "mean-teacher", ()),
    ("marginal-teacher-student", "teacher-student", ()),
    ("marginal-pretrain-finetune", "original-pretrain-finetune", SOFTMAX + SDC),
    ("marginal-self-training", "self-training", ()),
    ("log-unimatch", "unimatch", OURS + ONE_VIEW + COLD),
    ("log-self-training", "self-training", OURS),
    ("log-teacher-student", "original-teacher-student", OURS + SDC),
    ("log-pretrain-finetune", "original-pretrain-finetune", OURS + SDC),
    ("original-teacher-student", "original-teacher-student", ()),
    ("original-pretrain-finetune", "original-pretrain-finetune", ()),
    ("original-mean-teacher", "mean-teacher", ORIGINAL),
    ("original-unimatch", "unimatch", ORIGINAL + ONE_VIEW + COLD),
    ("original-self-training", "self-training", ORIGINAL),
]
# Every network for as long as `attunet` trains: epochs out of the measured cost of a step.
NETWORKS = [
    ("missformer", ("model=missformer", "width=32", "epochs=27")),
    ("uctransnet", ("model=uctransnet", "image_size=64", "epochs=23")),
    ("nnunet", ("model=nnunet", "width=32", "image_size=64", "epochs=19")),
    ("unet-resnet34", ("model=unet:resnet34", "width=0", "pretrained=no", "epochs=26")),
    ("segformer-b0", ("model=segformer:mit_b0", "width=0", "pretrained=no", "epochs=49")),
]

def phantom(epochs: int, full_epochs: int, keep: int) -> list[tuple]:
    """Rows of a phantom, as many steps for all.

    The rows "full" have every contour, which `ctseg phantom --truth` keeps aside."""
    rows = [
        ("original-attunet", "original-attunet", ()),
        ("log", "masked", ("log_dice=yes",)),
        ("marginal-log", "marginal", ("log_dice=yes",)),
        ("full-original-attunet", "original-attunet", (f"epochs={full_epochs}",)),
        ("full-marginal-log", "marginal", ("log_dice=yes", f"epochs={full_epochs}")),
        ("ctseg-sigmoid", "ctseg", HALF + ("loss=masked",)),
        ("ctseg", "ctseg", HALF),
        ("marginal-mean-teacher", "mean-teacher", ()),
        ("marginal-teacher-student", "teacher-student", (f"keep={keep}",)),
        ("marginal-pretrain-finetune", "original-pretrain-finetune", SOFTMAX + SDC + (f"keep={keep}",)),
        ("marginal-self-training", "self-training", ()),
        ("original-teacher-student", "original-teacher-student", (f"keep={keep}",)),
        ("original-pretrain-finetune", "original-pretrain-finetune", (f"keep={keep}",)),
        ("original-mean-teacher", "mean-teacher", ORIGINAL),
        ("original-unimatch", "unimatch", ORIGINAL + ONE_VIEW + COLD),
        ("original-self-training", "self-training", ORIGINAL),
    ]
    return [
        (name, recipe, ("width=16", f"epochs={epochs}", "batch_size=8", "precision=bf16") + extra)
        for name, recipe, extra in rows
    ]


# One thing changed at a time: of `log-fp32` (supervised), of `ctseg-sigmoid` (both phases), which are in
# the table semi100.
LOG = ("log_dice=yes",)
ABLATION = [
    ("no-cutmix", "ctseg", HALF + ("loss=masked", "cutmix=0")),
    ("ctseg-strong", "ctseg", HALF + ("loss=masked", "augment=strong")),
    ("rare", "masked", LOG + ("rare_power=0.5",)),  # slices with rare classes shown more often
    ("no-ema", "masked", LOG + ("ema=0",)),
    ("mirror", "masked", LOG + ("mirror=horizontal",)),
    ("augment-none", "masked", LOG + ("augment=none",)),
    ("augment-strong", "masked", LOG + ("augment=strong",)),
    ("size-96", "masked", LOG + ("image_size=96",)),
    # the second phase on the annotated slices alone, of which half of the cells are unknown; of
    # `marginal-log` in semi100
    ("labelled-only", "ctseg", HALF + ("unlabelled=0", "precision=bf16")),
    # of `log-self-training` and of `log-teacher-student`, in semi100
    ("no-quota", "self-training", OURS + ("quota=1", "precision=bf16")),
    ("two-rounds", "self-training", OURS + ("rounds=2", "precision=bf16")),
    ("max-confidence", "original-teacher-student", OURS + ("confidence=max", "precision=bf16")),
]

# Decoders over the same pretrained encoder, 100 annotated slices enlarged to 128, each for as long as the
# light U-Net: epochs out of the measured cost of a step.
LITE = ("image_size=128", "frozen_levels=2", "batch_size=8", "precision=fp32", "labelled=100")
DECODERS = [
    ("unet-light", "unet", 36, ("light=yes", "half=yes")),
    ("unet", "unet", 22, ()),
    ("unet++", "unet++", 18, ()),
    ("fpn", "fpn", 29, ()),
    ("deeplabv3+", "deeplabv3+", 20, ()),
]

PRETRAINED_STEPS = ("batch_size=8", "precision=fp32")
PRETRAINED = [
    ("ctseg-pretrained", ("epochs=50",)),
    ("ctseg-pretrained-second-3", ("epochs=50", "second_phase=3")),
    ("ctseg-second", ("epochs=25", "second_phase=1.6")),  # most of the time for the second phase
]

# Real slices of 256 pixels of seven sources, merged; as many steps for both, which cost about the same.
LITE0 = ("model=unet:tf_efficientnet_lite0", "light=yes", "frozen_levels=2")
LARGE = ("image_size=192", "epochs=20", "batch_size=8", "precision=bf16")

# Ever more annotated slices: (slices, epochs of the first phase). 100 and 800 are in semi100 and semi800.
BUDGETS = [(25, 600), (50, 300), (200, 77), (400, 57)]
BY_BUDGET = [
    ("original-attunet", "original-attunet", ()),
    ("marginal-log", "marginal-log", ()),
    ("ctseg-long", "ctseg", ()),  # the second phase as long as the recipe asks for
    ("ctseg-half", "ctseg", HALF),
]

# Changes of the second phase in its short form, the last three by the methods of tried.py.
TRIED = [
    ("base", ()),
    ("tau-0.5", ("tau=0.5",)),
    ("mirror", ("mirror=horizontal",)),
    ("rare-boxes", ("method=unimatch-rare",)),
    ("prototypes", ("method=unimatch-prototypes",)),
    ("fold-teachers", ("method=unimatch-folds",)),
]

TABLES = {
    "tried": [
        (name, "ctseg", BASE + HALF + FEW + extra) for name, extra in TRIED
    ],
    "efficiency": [
        (f"{name}-{slices}", recipe, BASE + (f"labelled={slices}", f"epochs={epochs}") + extra)
        for name, recipe, extra in BY_BUDGET
        for slices, epochs in BUDGETS
    ],
    # a hundred annotated slices of all patients: one of each, then a second
    "spread": [(f"spread100-{recipe}", recipe, BASE + FEW[1:]) for recipe in ("marginal-log", "ctseg")]
    + [("spread100-ctseg-pretrained", "ctseg-pretrained", (*HALF, *PRETRAINED_STEPS, "epochs=50"))],
    "large": [
        ("attunet", "marginal-log", ("width=16", *LARGE)),
        ("lite0", "marginal-log", (*LITE0, *LARGE)),
    ],
    "pretrained": [
        (name, "marginal-log", (f"model={decoder}:tf_efficientnet_lite0", f"epochs={epochs}", *LITE, *extra))
        for name, decoder, epochs, extra in DECODERS
    ]
    + [
        (name, "ctseg-pretrained", HALF + (*PRETRAINED_STEPS, "labelled=100", *extra))
        for name, extra in PRETRAINED
    ],
    "supervised": [
        (name, recipe, BASE + extra)
        for name, recipe, extra in [
            ("original-attunet", "original-attunet", ()),
            ("marginal", "marginal", ()),
            ("masked", "masked", ()),
            ("masked-log", "masked", ("log_dice=yes",)),
            ("marginal-log", "marginal", ("log_dice=yes",)),
            ("marginal-image", "marginal", ("reduction=image",)),
            ("masked-image", "masked", ("reduction=image",)),
            ("masked-nopixel", "masked", ("pixel_known=no",)),
            ("ce-dice-zeros", "marginal", ("loss=ce-dice",)),
        ]
    ],
    "semi100": [
        (name, recipe, BASE + FEW + extra) for name, recipe, extra in SEMI
    ],
    # the row of `ablation` with fewer unlabelled images
    "counts": [
        (f"ctseg-u{n}", "ctseg", BASE + HALF + (*FEW, "loss=masked", f"unlabelled={n}"))
        for n in (300, 600, 1200)
    ],
    "semi800": [
        (name, recipe, BASE + extra)
        for name, recipe, extra in SEMI + [("ctseg-longer", "ctseg", HALF + ("epochs=80",))]
    ],
    "networks": [(name, "masked", BASE + ("log_dice=yes",) + extra) for name, extra in NETWORKS],
    # ctseg phantom FOLDER --labelled 100 --unlabelled 500 --test 150 --size 128 --truth
    "phantom": phantom(40, 7, 300),
    # ctseg phantom FOLDER --labelled 240 --unlabelled 360 --test 150 --size 128 --truth --seed 1
    "phantom240": phantom(30, 12, 240),
    "ablation": [
        (name, recipe, BASE + ("labelled=100", "epochs=120", "precision=fp32") + extra)
        for name, recipe, extra in ABLATION
    ],
    "ensemble": [
        (f"{name}-f{k}", "masked", BASE + ("log_dice=yes", "folds=5", f"fold={k}") + extra)
        for name, extra in (("log", ()), ("presence", ("presence=0.3",)))
        for k in range(5)
    ],
}
