"""A file of TensorBoard's events, by TensorBoard's own package, and only what is not there yet."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata, plugin_data_pb2, summary_v2
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.summary.writer.record_writer import RecordWriter

from levit_search.files import named_in_utf_8

_NAME = "events.out.tfevents.levit-search"  # TensorBoard reads what has ``tfevents`` in its name
_VERSION = "brain.Event:2"
_FRAME_BYTES = 16  # of a record: https://www.tensorflow.org/tutorials/load_data/tfrecord

Hparam = float | str


class EventFile:
    """One of TensorBoard's runs: a folder with one file, to which scalars are appended.

    What is there already is read first, and nothing is written twice; a torn record at the end,
    left by a killed writer, is taken away.

    Args:
        folder: of the run; it is made with the first scalar.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._values: dict[tuple[str, int], bytes] = {}
        if self._path.exists():
            self._read()

    @property
    def has_hparams(self) -> bool:
        """Whether it has anything of the plug-in for hyperparameters."""
        return any(tag.startswith("_hparams_/") for tag, _ in self._values)

    def steps(self, tag: str) -> list[int]:
        """Those at which there is a value, in the order in which they were written first."""
        return [step for name, step in self._values if name == tag]

    def add(self, step: int, at: float, scalars: Mapping[str, float]) -> None:
        """Write what is not there, or not with this value.

        Args:
            step: of the horizontal axis.
            at: when it was so, in seconds since 1970.
            scalars: values by tag; they are kept in single precision.

        Raises:
            OSError: it cannot be written.
        """
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(step, at, Summary(value=values))

    def begin_experiment(
        self, at: float, hparams: Mapping[str, Sequence[Hparam]], metrics: Mapping[str, str]
    ) -> None:
        """Tell the plug-in for hyperparameters what varies over the runs beside this one.

        Args:
            at: in seconds since 1970.
            hparams: values by name, all of them numbers or all texts.
            metrics: what to show of each run: how it is headed, by tag.

        Raises:
            OSError: it cannot be written.
        """
        infos = [
            summary_v2.HParam(name, summary_v2.Discrete(values)) for name, values in hparams.items()
        ]
        shown = [summary_v2.Metric(tag, display_name=head) for tag, head in metrics.items()]
        self._append(0, at, summary_v2.hparams_config_pb(infos, shown, at))

    def add_hparams(
        self, name: str, hparams: Mapping[str, Hparam], begun: float, ended: float
    ) -> None:
        """Tell the plug-in for hyperparameters what this run was made of.

        Args:
            name: of the run.
            hparams: its values by name.
            begun, ended: in seconds since 1970.

        Raises:
            OSError: it cannot be written.
        """
        told = summary_v2.hparams_pb(hparams, trial_id=name, start_time_secs=begun)
        end = plugin_data_pb2.SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=ended)
        told.value.add(
            tag=metadata.SESSION_END_INFO_TAG,
            metadata=metadata.create_summary_metadata(
                plugin_data_pb2.HParamsPluginData(session_end_info=end)
            ),
            tensor=metadata.NULL_TENSOR,
        )
        self._append(0, ended, told)

    def _append(self, step: int, at: float, summary: Summary) -> None:
        new = [value for value in summary.value if self._take(step, value)]
        if not new:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            writer = RecordWriter(file)
            if file.tell() == 0:
                writer.write(Event(wall_time=at, file_version=_VERSION).SerializeToString())
            event = Event(wall_time=at, step=step, summary=Summary(value=new))
            writer.write(event.SerializeToString())

    def _read(self) -> None:
        whole = 0
        with named_in_utf_8(self._path.parent) as folder:
            for record in RawEventFileLoader(str(folder / _NAME)).Load():
                whole += _FRAME_BYTES + len(record)
                event = Event.FromString(record)
                for value in event.summary.value:
                    self._take(event.step, value)
        if whole < self._path.stat().st_size:
            os.truncate(self._path, whole)

    def _take(self, step: int, value: Summary.Value) -> bool:
        """Note what is there; whether that is new."""
        raw = value.SerializeToString()
        is_new: bool = self._values.get((value.tag, step)) != raw
        self._values[value.tag, step] = raw
        return is_new
