"""Features: optional flags with their callbacks, one file or sub-package each. Deleting one removes its flags.

A feature defines `callbacks(*, FLAG: type = default) -> list[Callback]`, with any of these before the `*`: run_dir, the
run folder; model, the LightningModule; data, the LightningDataModule. What stands behind it is a flag. It may define
    fit(settings, run) -> metrics: wraps training; calls run(settings) once or several times;
    splitter(*, FLAGS): None, or a function (dataset, indices, seed) -> (train indices, val indices);
    fetch(url, root, flag) -> Path: downloads a run, or a file, at an address with "://";
    load_checkpoint_folder(path) -> dict: reads a checkpoint that is a folder;
    finish(): runs last, after the action.
Its constant NOT_KEPT lists flags that a resumed run does not take from its config.yaml: a person gives them again. Its
constant SPLIT_FLAGS lists those that say which item is in which split: a resumed run cannot change them.
A callback's class attributes `changes_parameters` and `changes_step` tell the command `plan` to include it in its
count of trainable parameters and in its timing of a step. A run that is resumed within an epoch calls on_train_start,
but not on_train_epoch_start: what that sets has to be set there too, or kept by `state_dict`. No feature imports
another one.
"""
