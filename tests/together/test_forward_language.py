"""Language models train through `Runner.forward` to the same weights as a loop by hand, weighted by their tokens."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from by_hand import assert_same_weights
from fit_callbacks import GradientClipping, LRScheduler
from fit_core import Callback, Runner
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

# Token classification with a model that returns its loss, a mean over the labels that are not ignored.


@dataclass
class TokenOutput:
    logits: Tensor
    loss: Tensor | None = None


class TokenClassifier(nn.Module):
    """Called like the models of Hugging Face: with the batch as keywords, labels included."""

    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask, labels=None):
        hidden = self.embedding(input_ids) * attention_mask.unsqueeze(2)
        hidden = self.mix(hidden + hidden.mean(1, keepdim=True)).tanh()
        logits = self.head(hidden)
        if labels is None:
            return TokenOutput(logits)
        return TokenOutput(logits, functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100))


class TokenRunner(Runner):
    def forward(self):
        state = self.state
        result = state.model(**state.input)
        state.output, state.loss = result.logits, result.loss
        if state.loss is not None:
            state.target = state.input["labels"]
            state.weight = (state.target != -100).sum()


def tokens_batch(labelled, generator):
    """A batch of sentences of up to 7 tokens, given how many tokens of each have a label."""
    size = (len(labelled), 7)
    place = torch.arange(7)
    counts = torch.tensor(labelled).unsqueeze(1)
    labels = torch.randint(3, size, generator=generator)
    return {
        "input_ids": torch.randint(12, size, generator=generator),
        "attention_mask": (place <= counts).long(),
        "labels": labels.where(place < counts, -100),
    }


def token_batches():
    """Windows of two batches with 8 and 3 labels, 11 and none, and a window of one batch with 6."""
    generator = torch.Generator().manual_seed(1)
    return [tokens_batch(labelled, generator) for labelled in ([6, 2], [3], [5, 5, 1], [0, 0], [2, 4])]


def token_accuracy(logits, labels):
    has_label = labels != -100
    return (logits.argmax(2) == labels)[has_label].double().mean()


def token_classifier(dtype=torch.float32):
    torch.manual_seed(0)
    return TokenClassifier().to(dtype)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def windows(batches, size):
    return [batches[start : start + size] for start in range(0, len(batches), size)]


def number_of_labels(batches):
    return sum((batch["labels"] != -100).sum() for batch in batches)


def test_a_window_is_the_mean_over_its_labelled_tokens():
    """The loop by hand counts the tokens of a window in advance, and the Runner corrects the gradients of its first
    batches when it has seen the last one. So the results differ by rounding.
    """
    by_hand, model = token_classifier(torch.float64), token_classifier(torch.float64)
    optimizer = sgd(by_hand)
    for _ in range(3):
        for window in windows(token_batches(), 2):
            optimizer.zero_grad()
            for batch in window:
                logits = by_hand(batch["input_ids"], batch["attention_mask"]).logits
                total = functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
                (total / number_of_labels(window)).backward()
            optimizer.step()

    TokenRunner(model, sgd(model), None, accumulate_steps=2).fit(token_batches(), epochs=3)
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_in_bfloat16_the_bits_are_those_of_a_loop_by_hand():
    """The loop by hand corrects the gradients as the Runner does, since there is no tolerance here."""
    by_hand, model = token_classifier(), token_classifier()
    optimizer = sgd(by_hand)
    for _ in range(3):
        for window in windows(token_batches(), 2):
            optimizer.zero_grad()
            divisor = 2 * number_of_labels(window[:1]).double()  # as if all batches of the window were like the first
            for index, batch in enumerate(window):
                with torch.autocast("cpu", torch.bfloat16):
                    loss = by_hand(**batch).loss
                if index == len(window) - 1:
                    for parameter in by_hand.parameters():
                        if parameter.grad is not None:
                            parameter.grad *= divisor / number_of_labels(window)
                    divisor = number_of_labels(window).double()
                (loss / (divisor / number_of_labels([batch]))).backward()
            optimizer.step()

    runner = TokenRunner(model, sgd(model), None, accumulate_steps=2, use_bf16=True)
    runner.fit(token_batches(), epochs=3)
    assert_same_weights(model, by_hand)
    assert runner.predict(token_batches()).dtype == torch.float32  # what autocast computed in bfloat16


def test_losses_and_metrics_are_means_over_labelled_tokens():
    model = token_classifier(torch.float64)
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    runner = TokenRunner(model, still, None, [token_accuracy])
    batches = token_batches()
    row = runner.fit(batches, val_loader=batches)[0]

    logits = torch.cat([model(batch["input_ids"], batch["attention_mask"]).logits for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    loss = float(functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).detach())
    results = {
        "loss": pytest.approx(loss, rel=1e-12),
        "token_accuracy": pytest.approx(float(token_accuracy(logits, labels)), rel=1e-12),
    }
    assert row == {"epoch": 1, "lr": 0.0} | {
        f"{name}/{key}": value for name in ("train", "val") for key, value in results.items()
    }
    assert runner.evaluate(batches, name="test") == {f"test/{name}": value for name, value in results.items()}
    assert runner.state.samples_seen == 10  # sentences


def test_without_labels_there_is_no_loss_and_predictions_are_the_same():
    model = token_classifier()
    runner = TokenRunner(model, sgd(model), None)
    unlabelled = [{name: value for name, value in batch.items() if name != "labels"} for batch in token_batches()]
    assert runner.evaluate(unlabelled) == {}
    logits = torch.cat([model(**batch).logits for batch in unlabelled])
    assert torch.equal(runner.predict(unlabelled), logits)
    assert torch.equal(runner.predict(token_batches()), logits)


# A small GPT, trained as they are: decay groups, warmup and cosine, clipping, accumulation, dropout.


class SmallGPT(nn.Module):
    def __init__(self, vocabulary=11, width=8, length=6):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.block = nn.TransformerEncoderLayer(
            width, nhead=2, dim_feedforward=16, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        length = tokens.size(1)
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.tokens(tokens) + self.places(torch.arange(length))
        return self.head(self.norm(self.block(hidden, mask, is_causal=True)))


class GPTRunner(Runner):
    def forward(self):
        state = self.state
        state.output, state.target = state.model(state.input[:, :-1]), state.input[:, 1:]
        state.weight = state.target.numel()
        if state.needs_loss:
            state.loss = functional.cross_entropy(state.output.flatten(0, 1), state.target.flatten())


def small_gpt():
    torch.manual_seed(0)
    return SmallGPT()


def adamw(model):
    """Decay matrices, and neither biases nor gains."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01)


def warmup_and_cosine(optimizer, total_steps):
    def factor(step):
        if step < 3:
            return (step + 1) / 4
        return (1 + math.cos(math.pi * (step - 3) / (total_steps - 3))) / 2

    return LambdaLR(optimizer, factor)


def text(seed, lines):
    return torch.randint(11, (lines, 7), generator=torch.Generator().manual_seed(seed))


def train_gpt(callbacks=(), state_dict=None):
    model = small_gpt()
    callbacks = [GradientClipping(1.0), LRScheduler(warmup_and_cosine), *callbacks]
    runner = GPTRunner(model, adamw(model), None, callbacks=callbacks, accumulate_steps=2)
    if state_dict is not None:
        runner.state.load_state_dict(state_dict)
    torch.manual_seed(2)
    history = runner.fit(
        DataLoader(text(1, lines=20), batch_size=4, shuffle=True), epochs=3, val_loader=text(2, lines=5).split(3)
    )
    return runner, history


def test_a_small_gpt_trains_as_by_hand():
    by_hand = small_gpt()
    optimizer = adamw(by_hand)
    scheduler = warmup_and_cosine(optimizer, total_steps=9)
    loader = DataLoader(text(1, lines=20), batch_size=4, shuffle=True)
    torch.manual_seed(2)
    rates = []
    for _ in range(3):
        for window in windows(list(loader), 2):  # of 2, 2 and 1 batches
            optimizer.zero_grad()
            for tokens in window:
                logits = by_hand(tokens[:, :-1])
                loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
                (loss / len(window)).backward()
            clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0)
            optimizer.step()
            scheduler.step()
        rates.append(scheduler.get_last_lr()[0])

    runner, history = train_gpt()
    assert_same_weights(runner.state.model, by_hand)
    assert [row["lr"] for row in history] == rates
    assert history[0]["grad_norm"] > 1  # there was something to clip

    by_hand.eval()
    validation = text(2, lines=5)
    logits = by_hand(validation[:, :-1])
    loss = float(functional.cross_entropy(logits.flatten(0, 1), validation[:, 1:].flatten()).detach())
    assert history[-1]["val/loss"] == pytest.approx(loss, rel=1e-6)  # a mean in float32
    assert runner.evaluate(validation.split(3)) == {"val/loss": history[-1]["val/loss"]}
    torch.testing.assert_close(runner.predict(validation.split(3)), logits)


def test_a_small_gpt_resumes_with_the_same_bits():
    class Keep(Callback):
        def on_checkpoint(self, state):
            saved.append(copy.deepcopy(state.state_dict()))

    saved = []
    uninterrupted, history = train_gpt([Keep()])
    assert len(saved) == 3 * (5 + 1)
    for state_dict in saved[6:]:  # inside windows, between them, and after an epoch
        resumed, resumed_history = train_gpt(state_dict=state_dict)
        assert_same_weights(resumed.state.model, uninterrupted.state.model)
        assert resumed_history == history
