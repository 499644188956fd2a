"""The message by which a client tells operators who its parties are, and what its long names were
before they were hashed. It decides nothing. The row of the protocol's table stands in `messages`.
"""

from typing import Annotated, Final

from dlock._frozen import Frozen
from dlock.control.fields import Binary, Many, Record, Text
from dlock.control.messages_base import BATCH_MAX, U32, Descriptor, Request, Status

LABEL_BYTES_MAX: Final = 128
LABELS_A_MESSAGE_MAX: Final = 256
NAME_TEXT_BYTES_MAX: Final = 48 * 1024

Label = Annotated[str, Text(LABEL_BYTES_MAX)]
NameText = Annotated[bytes, Binary(0, NAME_TEXT_BYTES_MAX)]


class LabelLine(Frozen):
    """What operators shall read of this actor of the client; empty: nothing any more."""

    actor: U32
    label: Label


class TextLine(Frozen):
    """What the name of this lock, which the client has got, stands for."""

    descriptor: Descriptor
    text: NameText


class Describe(Request[Status]):
    """Labels of actors, and texts of names."""

    labels: Annotated[
        tuple[LabelLine, ...], Many(Record(LabelLine), 0, LABELS_A_MESSAGE_MAX)] = ()
    texts: Annotated[tuple[TextLine, ...], Many(Record(TextLine), 0, BATCH_MAX)] = ()
