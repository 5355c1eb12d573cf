"""VideoFrames: clips in a folder for each class, a few frames of each."""

import itertools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from engine.datamodule.splits import split_indices
from engine.errors import FileError, UsageError

SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


class VideoFrames(Dataset):
    """Frames (K, 3, S, S) in 0..1 and the class of each clip data_dir/CLASS/CLIP, split by the seed.

    Where there is a folder data_dir/train, the splits are data_dir/train/CLASS/CLIP, val/CLASS/CLIP, test/CLASS/CLIP.

    A clip is cut into K segments of equal length. To learn from, each gives a frame drawn at random, which is another
    one in each epoch, else the one in its middle. A frame is scaled to S at its shorter side, and its centre cut out.

    Source: L. Wang et al., "Temporal segment networks", 2016.
    """

    in_channels = 3

    def __init__(
        self,
        split: str,
        num_frames: int = 8,
        img_size: int = 112,
        channels_first: bool = False,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        stratify: bool = True,
        seed: int = 0,
        data_dir: str = "datasets",
    ) -> None:
        """Lists the clips; none is opened yet.

        Args:
            split: "train", "val" or "test".
            num_frames: frames taken of each clip, K.
            img_size: height and width that come out, S.
            channels_first: (3, K, S, S) instead, as the networks of torchvision.models.video take it.
            val_fraction: share of the clips for validation, 0 for none, where there is no folder train.
            test_fraction: share of the clips for the test, where there is no folder train.
            stratify: cut the same share of every class.
            seed: the splits follow from it.
            data_dir: folder of the classes.

        Raises: UsageError: there is no clip.
        """
        if find_spec("av") is None:
            raise UsageError('--dataset video_frames needs PyAV: pip install -e ".[video]"')
        if num_frames < 1 or img_size < 1:
            raise UsageError(f"--num_frames {num_frames} and --img_size {img_size} should be at least 1")
        whole = not Path(data_dir, "train").is_dir()
        self.root, learn = Path(data_dir, "" if whole else split), Path(data_dir, "" if whole else "train")
        clips = sorted(filter(_is_clip, self.root.glob("*/*")))
        if not clips:
            raise UsageError(f"there is no clip {self.root}/CLASS/CLIP, a file of {', '.join(SUFFIXES)} (--data_dir)")
        self.classes = sorted({one.parent.name for one in filter(_is_clip, learn.glob("*/*"))})
        if strange := {one.parent.name for one in clips} - {*self.classes}:
            raise UsageError(f"{learn} has no class {sorted(strange)[0]!r}. It has: {', '.join(self.classes)}")
        targets = torch.tensor([self.classes.index(one.parent.name) for one in clips], dtype=torch.long)
        cut = split_indices(len(clips), seed, val_fraction, test_fraction, targets if stratify else None)
        mine = cut[split] if whole else torch.arange(len(clips))
        self.paths, self.targets = [str(clips[at]) for at in mine], targets[mine]
        self.split, self.num_frames, self.img_size, self.channels_first = split, num_frames, img_size, channels_first
        self.num_features = num_frames * 3 * img_size**2
        self.preprocessing: dict[str, Any] = {"frames": num_frames, "size": img_size, "range": [0, 1]}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        frames = read(Path(self.paths[index]), self.num_frames, self.img_size, draw=self.split == "train")
        clip = torch.from_numpy(frames).permute(*((3, 0, 1, 2) if self.channels_first else (0, 3, 1, 2)))
        return clip.float() / 255, self.targets[index]


def _is_clip(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def places(length: int, segments: int, draw: bool) -> list[int]:
    """Which of `length` frames to take: one of each segment, drawn or in its middle."""
    ends = [at * length // segments for at in range(segments + 1)]
    pairs = itertools.pairwise(ends)
    return [int(torch.randint(begin, end, ())) if draw else (begin + end) // 2 for begin, end in pairs]


def read(path: Path, num_frames: int, size: int, draw: bool) -> np.ndarray:
    """Frames (num_frames, size, size, 3) of a clip, bytes.

    Raises: FileError: it cannot be decoded, breaks off, or has fewer frames.
    """
    import av

    found: list[np.ndarray] = []
    try:
        with av.open(str(path)) as clip:  # the packets are counted, for not every format says how many there are
            if not clip.streams.video:
                raise ValueError("it has no video")
            length = sum(1 for packet in clip.demux(video=0) if packet.size)
        if length < num_frames:
            raise ValueError(f"it has {length} frames that can be read, and --num_frames is {num_frames}")
        wanted = places(length, num_frames, draw)
        with av.open(str(path)) as clip:
            for number, frame in enumerate(clip.decode(video=0)):
                if number in wanted:
                    found.append(_centre(frame, size))
                if len(found) == num_frames:
                    return np.stack(found)
    except av.FFmpegError as error:
        raise FileError(f"{path} cannot be decoded ({error.strerror}): mend it or take it away") from None
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None
    raise FileError(f"{path}: the file ends before frame {wanted[len(found)]} of {length}")


def _centre(frame: Any, size: int) -> np.ndarray:
    scale = size / min(frame.width, frame.height)
    width, height = (max(size, round(side * scale)) for side in (frame.width, frame.height))
    pixels = frame.to_ndarray(format="rgb24", width=width, height=height)  # (height, width, 3)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]
