"""A confusion matrix in TensorBoard."""

import pytest
import torch
from fit_callbacks import ConfusionMatrix, TensorBoard
from read_back import events
from scene import Matrix, batches, make
from sklearn.metrics import confusion_matrix

# ConfusionMatrix


def test_the_matrix_of_a_metric_is_drawn(tmp_path):
    board = TensorBoard(tmp_path)
    confusion = ConfusionMatrix(board, ["cat", "dog", "owl"])
    runner = make(confusion, board, metrics=[Matrix()])
    runner.fit(batches(), epochs=2, val_loader=batches(seed=1))
    outputs = runner.predict(batches(seed=1))
    target = torch.cat([y for _, y in batches(seed=1)])
    expected = confusion_matrix(target, outputs.argmax(1), labels=range(3)).tolist()
    runner.evaluate(batches(seed=1))
    assert confusion.matrix.tolist() == expected
    assert [image.step for image in events(tmp_path).Images("val/confusion")] == [5, 10]
    axes = confusion.draw().axes[0]
    assert {text.get_text() for text in axes.texts} == {str(count) for row in expected for count in row}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["cat", "dog", "owl"]


def test_the_matrix_of_torchmetrics_is_drawn_by_its_name(tmp_path):
    torchmetrics = pytest.importorskip("torchmetrics")
    metric = torchmetrics.classification.MulticlassConfusionMatrix(3)
    confusion = ConfusionMatrix(TensorBoard(tmp_path), metric="MulticlassConfusionMatrix")
    make(confusion, metrics=[metric]).evaluate(batches())
    assert confusion.matrix.sum() == 37
    assert [label.get_text() for label in confusion.draw().axes[0].get_yticklabels()] == ["0", "1", "2"]


def test_a_matrix_that_cannot_be_drawn_is_refused(tmp_path):
    board = TensorBoard(tmp_path)
    with pytest.raises(
        ValueError, match=r"a metric of the Runner named 'ConfusionMatrix', got none\. Add it: metrics="
    ):
        make(board, ConfusionMatrix(board)).fit(batches())
    with pytest.warns(UserWarning, match=r"could not draw the matrix: .*\(2, 2\), as classes has, got \(3, 3\)"):
        make(ConfusionMatrix(board, ["cat", "dog"]), metrics=[Matrix()]).evaluate(batches())
    with pytest.raises(ValueError, match=r"expected a matrix, got none yet. Validate or evaluate first"):
        ConfusionMatrix(board).draw()
    with pytest.raises(
        TypeError, match=r'expected classes to be a list of names such as \["cat", "dog"\], or None, got 3'
    ):
        ConfusionMatrix(board, 3)
    with pytest.raises(TypeError, match="expected board to be the run's TensorBoard callback, got list"):
        ConfusionMatrix(["cat", "dog"])
