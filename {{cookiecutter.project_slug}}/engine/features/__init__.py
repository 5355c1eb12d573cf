"""Features: flags and callbacks that some runs use. A file or sub-package each; delete one, and its flags are gone.

A feature defines `callbacks(run_dir, model, data, *, FLAG: type = default) -> list[Callback]`, and may define
    fit(settings, run) -> metrics: trains, by one or several calls of run(settings);
    splitter(*, FLAGS): a function (dataset, indices, seed) -> (train indices, val indices), or None;
    fetch(address, root, flag) -> Path: a run at an address with "://", copied to this machine;
    load_checkpoint_folder(path): a checkpoint that is a folder, as one dict;
    finish(): what is left to do when all is done.
A callback's class attributes `changes_parameters` and `changes_step` say that `plan` has to count with it.
No feature imports another one.
"""
