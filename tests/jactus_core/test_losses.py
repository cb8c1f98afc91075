"""The task losses against those of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from jactus_core.losses import IGNORED, apart, cross_entropy_sum, divergence, drawn_labels, row_scores
from tests.tiny import tiny_classifier

IDS = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 1, 1, 0])


def tiny_gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()


@pytest.fixture
def labels() -> Tensor:
    """With a masked prompt, masked padding, a first label that nothing predicts, and a row that does not count."""
    labels = IDS.clone()
    labels[0, :3] = IGNORED
    labels[1, 6:] = IGNORED
    labels[3] = IGNORED
    return labels


def test_a_classifier_s_loss_is_that_of_transformers_times_the_rows() -> None:
    output = tiny_classifier()(input_ids=IDS, labels=CLASSES)

    torch.testing.assert_close(cross_entropy_sum(output.logits, CLASSES), output.loss * 4)
    losses, counts, correct = row_scores(output.logits, CLASSES)
    torch.testing.assert_close(losses.sum(), output.loss * 4)
    assert counts.tolist() == [1, 1, 1, 1]
    assert correct.tolist() == (output.logits.argmax(1) == CLASSES).tolist()


def test_a_language_model_s_loss_is_that_of_transformers_times_the_counted_labels(labels: Tensor) -> None:
    output = tiny_gpt2()(input_ids=IDS, labels=labels)

    torch.testing.assert_close(cross_entropy_sum(output.logits, labels), output.loss * (6 + 5 + 8))
    losses, counts, _ = row_scores(output.logits, labels)
    torch.testing.assert_close(losses.sum(), output.loss * (6 + 5 + 8))
    assert counts.tolist() == [6, 5, 8, 0]


def test_each_row_scores_as_it_does_alone(labels: Tensor) -> None:
    model = tiny_gpt2()
    losses, counts, correct = row_scores(model(input_ids=IDS).logits, labels)

    for row in range(3):
        alone = model(input_ids=IDS[row : row + 1], labels=labels[row : row + 1])
        torch.testing.assert_close(losses[row], alone.loss * counts[row])
        predicted = alone.logits[0, :-1].argmax(-1).tolist()
        assert int(correct[row]) == sum(p == t for p, t in zip(predicted, labels[row, 1:].tolist(), strict=True))
    assert (float(losses[3].detach()), int(correct[3])) == (0.0, 0)


def test_a_perfect_answer_is_counted_right(labels: Tensor) -> None:
    logits = torch.nn.functional.one_hot(IDS.roll(-1, dims=1), 40).float() * 100

    losses, counts, correct = row_scores(logits, labels)

    assert correct.tolist() == counts.tolist() == [6, 5, 8, 0]
    torch.testing.assert_close(losses, torch.zeros(4))


def test_sampled_targets_follow_the_model_s_answer_and_not_the_labels() -> None:
    logits = torch.tensor([[0.0, 30, 0], [30, 0, 0]])  # certain of classes that the labels do not name

    drawn = drawn_labels(logits, {"labels": torch.tensor([2, 2])})

    assert drawn.tolist() == [1, 0]
    assert float(cross_entropy_sum(logits, torch.tensor([2, 2]))) == pytest.approx(60)
    assert float(cross_entropy_sum(logits, drawn)) == pytest.approx(0, abs=1e-6)


def test_a_language_model_s_labels_are_drawn_for_every_real_token() -> None:
    answers = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    logits = torch.nn.functional.one_hot(answers, 10).float() * 1000

    drawn = drawn_labels(logits, {"labels": torch.full((2, 4), IGNORED), "attention_mask": mask})

    assert drawn[:, 1:].tolist() == [[3, 1, 4], [5, 9, IGNORED]]
    assert float(cross_entropy_sum(logits, drawn)) == 0, "aligned as given labels are"


def test_answers_that_are_not_finite_keep_their_labels() -> None:
    labels = torch.tensor([2, 0])
    logits = torch.tensor([[0.0, 1, 2], [float("nan"), 0, 0]])

    assert drawn_labels(logits, {"labels": labels}) is labels


def test_the_divergence_from_a_teacher_is_that_of_the_two_answers() -> None:
    draws = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 5, 7, generator=draws, dtype=torch.float64)
    p, q = theirs.softmax(-1), ours.softmax(-1)

    found = divergence(ours.float().requires_grad_(), theirs.float())

    torch.testing.assert_close(found.double(), (p * (p / q).log()).sum() / 5, rtol=1e-5, atol=0)
    assert float(divergence(ours, ours + 3)) == pytest.approx(0, abs=1e-6), "answers, not logits, are compared"


def test_hidden_states_are_apart_by_the_share_of_their_variance_and_filling_does_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted, noise = torch.randn(2, 3, 5, 4, generator=generator) + 7
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    real = mask.bool().numpy()
    theirs, error = wanted.numpy()[real], noise.numpy()[real]
    filled = (wanted + noise).masked_fill(~mask.bool()[..., None], torch.nan)

    assert float(apart(filled, wanted, mask)) == pytest.approx((error**2).sum() / theirs.var(0).sum() / len(theirs))
    assert float(apart(wanted + noise, wanted, None)) == pytest.approx(
        float(noise.square().sum() / (wanted - wanted.mean((0, 1))).square().sum())
    )


def test_losses_of_bfloat16_logits_are_taken_in_float32() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(5)

    exact = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")

    assert cross_entropy_sum(logits, labels).dtype == torch.float32
    torch.testing.assert_close(cross_entropy_sum(logits, labels).double(), exact.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(row_scores(logits, labels)[0].double(), exact, rtol=1e-5, atol=0)
