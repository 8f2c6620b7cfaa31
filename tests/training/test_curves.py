"Whoever watches sees every epoch."
from ctseg.training.curves import Watch


def test_whoever_watches_sees_every_epoch(monkeypatch):
    rows, shown = [
        dict(phase="teacher", epoch=e, step=2*e, lr=0.1, loss=1/e, dice=0.1*e, skipped=0)
        for e in (1, 2, 3)
    ], []

    class Handle:
        def update(self, fig): shown.append(fig)
    monkeypatch.setattr("ctseg.training.curves.in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", lambda fig, display_id: shown.append(fig) or Handle())
    watch = Watch()
    for n in (1, 2, 3): watch(rows[:n])
    assert [len(f.axes[0].lines[0].get_xdata()) for f in shown] == [1, 2, 3]
