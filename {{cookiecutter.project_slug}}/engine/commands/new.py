"""`new`: write a first network or dataset to edit: `new network my_net --dataset digits`, `new dataset my_data`."""

from engine.cli import discovery
from engine.cli.discovery import ROOT
from engine.cli.features_and_commands import CommandParser
from engine.cli.signatures_from_source import from_source
from engine.errors import UsageError

_NETWORK = '''"""What it is, in one line."""

from torch import Tensor, nn


class {name}(nn.Module):
    def __init__(self, {arguments}, hidden_dim: int = 64) -> None:
        """hidden_dim: width of the hidden layer."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear({inputs}, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, {outputs})
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs)
'''
_DATASET = '''"""What it is, in one line."""

import torch
from torch.utils.data import Dataset


class {name}(Dataset):
    in_channels, img_size, num_classes = 1, 8, 2

    def __init__(self, num_items: int = 500) -> None:
        """num_items: how many to make."""
        self.images = torch.rand(num_items, self.in_channels, self.img_size, self.img_size)
        self.targets = (self.images.mean(dim=(1, 2, 3)) > 0.5).long()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[index], self.targets[index]
'''


def main(argv: list[str]) -> None:
    """Writes the file, never over another one, and prints the command that tries it.

    Raises: UsageError: no name for a file, one that is taken, or a dataset that there is not.
    """
    parser = CommandParser("new", __doc__)
    parser.add_argument("kind", choices=("network", "dataset"))
    parser.add_argument("name", help="name of the file, such as my_net; its class is then MyNet")
    parser.add_argument("--dataset", help="dataset for the network, whose attributes become its arguments")
    options = parser.parse_args(argv)
    path = ROOT / ("model" if options.kind == "network" else "data") / f"{options.name}.py"
    named = options.name.isidentifier() and options.name == options.name.lower() and options.name[0] != "_"
    if not named or options.name.endswith("_interface"):
        raise UsageError(f"new: {options.name} should be lower-case letters, digits and _, such as my_net")
    name = "".join(part.capitalize() for part in options.name.split("_"))
    text = _network(name, options.dataset) if options.kind == "network" else _DATASET.format(name=name)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UsageError(f"new: {path.relative_to(ROOT)}: {error.strerror}") from None
    networks, data = [*discovery.names("model"), "my_net"], [*discovery.names("data"), "my_data"]
    network = options.name if options.kind == "network" else "lenet" if "lenet" in networks else networks[0]
    dataset = options.name if options.kind == "dataset" else options.dataset or data[0]
    print(f"{path.relative_to(ROOT)}: python main.py --model_name {network} --dataset {dataset} --fast_dev_run")


def _network(name: str, dataset: str | None) -> str:
    """A perceptron whose arguments are those that the dataset knows, by default those of images."""
    known = {"in_channels", "img_size", "num_classes"}
    if dataset is not None:
        reference = discovery.find("data", dataset)
        signature = from_source(reference.node, reference.tree) if reference.tree else None
        known = set((signature.attributes if signature else None) or known)
    shape = ["num_features"] if "num_features" in known else ["in_channels", "img_size"]
    outputs = ["num_classes"] if "num_classes" in known else []
    return _NETWORK.format(
        name=name,
        arguments=", ".join(f"{one}: int" for one in shape + outputs),
        inputs=shape[0] if len(shape) == 1 else "in_channels * img_size**2",
        outputs=outputs[0] if outputs else 1,
    )
