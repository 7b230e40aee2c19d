"""The examples that show one feature each do what they say, on few steps."""

import re
from pathlib import Path

import pytest
from processes import run_program

EXAMPLES = Path(__file__).parents[2] / "examples"


def lines_of(name, *arguments):
    result = run_program(EXAMPLES / name, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def percents(line):
    return [float(number) for number in re.findall(r"([\d.]+)%", line)]


def test_mixed_precision_learns_as_well():
    whole, half = lines_of("mixed_precision.py", "--epochs", "5")[:2]
    assert "scores in torch.float32" in whole
    assert "scores in torch.bfloat16" in half
    assert percents(whole)[0] > 80
    assert abs(percents(half)[0] - percents(whole)[0]) < 3


def test_digits_are_learnt_with_and_without_augmentation():
    plain, augmented = lines_of("digits.py", "--epochs", "3", "--seeds", "1")
    assert plain.startswith("plain ")
    assert augmented.startswith("augmented and mixed ")
    assert percents(plain)[0] > 85
    assert percents(augmented)[0] > 85
    assert percents(plain) != percents(augmented)


def test_the_gan_finds_all_eight_gaussians():
    good, counts = lines_of("gan.py", "--steps", "400")
    of_generated, of_data = percents(good)
    assert of_data == pytest.approx(98.9, abs=0.3)  # 1 - exp(-3**2 / 2)
    assert of_generated > 40  # Points strewn evenly over the square of the data hit a Gaussian one time in ten.
    counts = [int(count) for count in counts.split(": ")[1].split()]
    assert sum(counts) == 8000
    assert min(counts) > 200


def test_what_was_learnt_before_helps():
    lines = lines_of("finetune.py", "--draws", "3", "--epochs", "12")
    scratch, frozen, unfrozen = (percents(line)[0] for line in lines)
    assert unfrozen > scratch + 10
    assert unfrozen > frozen + 2


def test_torchmetrics_say_what_scikit_learn_says():
    pytest.importorskip("torchmetrics")
    values = dict(line.rsplit(maxsplit=1) for line in lines_of("torchmetrics_objects.py", "--epochs", "2"))
    values = {name.strip(): float(value) for name, value in values.items()}
    balanced, matthews = values["val/balanced accuracy"], values["val/MulticlassMatthewsCorrCoef"]
    assert balanced == pytest.approx(values["scikit-learn, balanced accuracy"], abs=1e-4)
    assert matthews == pytest.approx(values["scikit-learn, Matthews"], abs=1e-4)
    assert 0.3 < matthews < 1
    assert "val/MulticlassConfusionMatrix" not in values


@pytest.mark.parametrize(("stop", "workers"), [(25, 0), (70, 0), (70, 1)])
def test_a_stream_goes_on_with_the_same_bits(stop, workers):
    """Stopped in the first epoch, or in the second, on the second pass over the file."""
    arguments = ["--epochs", "2", "--stop", str(stop), "--workers", str(workers)]
    undisturbed, stopped, resumed, verdict = lines_of("iterable.py", *arguments)
    assert stopped.endswith(f"in step {stop}")
    assert undisturbed.split()[1] == resumed.split()[1] != stopped.split()[1]
    assert verdict == "the same bits"


def test_the_table_names_every_example():
    table = (EXAMPLES / "README.md").read_text()
    assert set(re.findall(r"^\| \[(\w+\.py)\]\(\1\)", table, re.M)) == {path.name for path in EXAMPLES.glob("*.py")}
