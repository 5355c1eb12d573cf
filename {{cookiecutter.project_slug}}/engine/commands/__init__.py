"""Commands: the actions of `python main.py COMMAND` beside fit, validate and test. A file or sub-package each.

A command defines `run(NEEDS, *, FLAG: type = default)`; NEEDS are any of settings, build_data, build_model, trainer,
model, data, ckpt_path and run_dir, by name: without `trainer`, none is made, and without `ckpt_path`, the command takes
no checkpoint. A class `NoNetwork` in its file stands for the network where --model_name is not given. Or it defines
`main(argv)` and parses its arguments itself, say by a CommandParser
(engine.cli.features_and_commands). No command imports another one.
"""
