"""Character LSTM of McMahan et al. 2017 and LEAF."""

from torch import Tensor, nn


class CharLSTM(nn.Module):
    """Embeds characters, reads them with stacked LSTMs, and predicts from the last state.

    McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data"
    (AISTATS 2017), section 3, as LEAF has it (``models/shakespeare/stacked_lstm.py``): an embedding
    of 8, two layers of 256 units, a linear head. (PyTorch's LSTM has two bias vectors a layer where
    TensorFlow's has one.) ``features`` maps tokens (batch, length) int64 to (batch, hidden_size),
    ``classifier`` those to logits (batch, num_classes). ``torch.func.vmap`` cannot batch it, so it
    trains one client at a time.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        num_tokens: int | None = None,
        embedding_size: int = 8,
        hidden_size: int = 256,
        num_layers: int = 2,
    ) -> None:
        """Build the model with PyTorch's default initialisation.

        Args:
            input_shape: (length,) of one sequence.
            num_classes: Outputs, at least 1.
            num_tokens: How many different tokens there are, each in 0..num_tokens - 1; None for
                `num_classes`, where the label is the next token.
            embedding_size: Numbers that stand for a token, at least 1.
            hidden_size: Units of each layer, at least 1.
            num_layers: LSTMs on top of each other, at least 1.

        Raises:
            ValueError: An argument is out of its range.
        """
        super().__init__()
        if len(input_shape) != 1:
            shown = "x".join(str(size) for size in input_shape)
            raise ValueError(f"model=char_lstm: needs sequences of tokens (length,), not {shown}")
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes}: must be at least 1")
        sizes = {
            "num_tokens": num_classes if num_tokens is None else num_tokens,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
        }
        for key, value in sizes.items():
            if value < 1:
                raise ValueError(f"model.{key}={value}: must be at least 1")
        self.features = _LastState(**sizes)
        self.classifier = nn.Linear(hidden_size, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, num_classes) of tokens x (batch, length) int64."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class _LastState(nn.Module):
    """What stacked LSTMs make of a sequence: the last layer's output at the last token."""

    def __init__(
        self, num_tokens: int, embedding_size: int, hidden_size: int, num_layers: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, embedding_size)
        self.lstm = nn.LSTM(embedding_size, hidden_size, num_layers, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return (batch, hidden_size) of tokens x (batch, length) int64."""
        if x.is_floating_point():
            raise ValueError(f"model=char_lstm: needs whole tokens, inputs are {x.dtype}")
        outputs: Tensor = self.lstm(self.embedding(x))[0]
        return outputs[:, -1]
