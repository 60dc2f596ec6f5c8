"""Bad input: exit status 2 and one line that names the key and the way out, before data loads."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli import main

CONFIGURATION = [
    # unknown choices
    ("continual=replya", "continual=replya: unknown; did you mean replay? choices: "),
    ("continual=null", "continual=null: unknown; choices: "),
    ("scenario=split_minst", "did you mean split_mnist?"),
    ("aggregation=fedavgg", "did you mean fedavg?"),
    ("aggregation=_flower", "aggregation=_flower: is not a choice; choices: "),
    ("dataset=cifar11", "dataset=cifar11: unknown"),
    ("experiment=digit_bands", "did you mean digits_bands?"),
    ("runtime=ray runtime.address=head", "=head: must be local, auto or HOST:PORT"),
    ("runtime=deployment", "runtime.connection: is missing"),
    # unknown keys
    ("local.epoch=3", "local.epoch=3: unknown key; did you mean local.epochs?"),
    ("numclients=3", "did you mean num_clients?"),
    ("lr=0.1", "lr=0.1: unknown key; did you mean optimizer.lr?"),
    ("continul=naive", "continul=naive: unknown key; did you mean continual?"),
    ("dataset.test_fractoin=0.1", "did you mean test_fraction? keys of dataset=digits: "),
    ("+optimizer.lrr=3", "optimizer.lrr=3: unknown key; did you mean lr? keys: lr, momentum"),
    ("+local.epoch=3", "local.epoch=3: unknown key; did you mean local.epochs?"),
    ("+foo=1", "foo=1: unknown key"),
    ("+model.num_classes=3", "model.num_classes=3: is filled in by fedlearn"),
    ("~continual", "continual: is missing; choices: "),
    ("~seed", "seed: is missing"),
    # grammar
    ("seed", "seed: '=' is missing, expected key=value"),
    ("replay", "did you mean continual=replay?"),
    ("seed=[1", "seed=[1: "),
    ("seed=0,1", "seed=0,1: several values need -m"),
    ("name=${oops}", "name=${oops}: Interpolation key 'oops' not found"),
    # types
    ("local.epochs=two", "local.epochs=two: must be a whole number"),
    ("seed=1.5", "seed=1.5: must be a whole number"),
    ("seed=null", "seed=null: must not be null"),
    ("head.mask=maybe", "head.mask=maybe: must be true or false"),
    ("local=3", "local=3: has keys of its own"),
    ("optimizer.lr=fast", "optimizer.lr=fast: must be a finite number"),
    ("optimizer.lr=inf", "optimizer.lr=inf: must be a finite number"),
    ("optimizer.nesterov=3", "optimizer.nesterov=3: must be true or false"),
    ("model.activation=rleu", "did you mean relu?"),
    ("model.hidden_sizes=100", "model.hidden_sizes=100: must be a list"),
    ("model.hidden_sizes=[a]", "a in it must be a whole number"),
    ("scenario.held_out=some", "scenario.held_out=some: must be a finite number"),
    ("model=[cnn,mlp]", "model: must be one choice; choices: char_lstm, cnn, "),
    ("model=[1]", "model=[1]: unknown; choices: "),
    ("model=[]", "model: is missing"),
    ("optimizer.limits=true", "optimizer.limits=true: must be a mapping"),
    ("optimizer.limits.momentum=small", "optimizer.momentum: 'small' is not an interval"),
    ("aggregation=krum aggregation.bound=3", "aggregation.bound=3: needs a _target_"),
    ("aggregation._target_=torch.nn.Identity", "what it makes, Identity, has no configure_train"),
    ("partition._target_=collections.Counter", "what it makes, Counter, has no split"),
    ("cohort._target_=collections.Counter", "what it makes, Counter, has no choose"),
    # ranges
    ("seed=-1", "seed=-1: must be at least 0"),
    ("num_clients=0", "num_clients=0: must be at least 1"),
    ("fraction_train=0", "fraction_train=0.0: must be in (0, 1]"),
    ("fraction_train=nan", "fraction_train=nan: must be in (0, 1]"),
    ("fraction_evaluate=1.1", "fraction_evaluate=1.1: must be in [0, 1]"),
    ("rounds_per_experience=0", "rounds_per_experience=0: must be at least 1"),
    ("evaluate_every=0", "evaluate_every=0: must be at least 1"),
    ("max_failed_rounds=0", "max_failed_rounds=0: must be at least 1"),
    ("local.epochs=0", "local.epochs=0: must be at least 1"),
    ("faults.drop_out=1", "faults.drop_out=1.0: must be in [0, 1)"),
    ("faults.drop_out=-0.1", "faults.drop_out=-0.1: must be in [0, 1)"),
    ("faults.straggle=1.1", "faults.straggle=1.1: must be in [0, 1]"),
    ("faults.straggle_work=0", "faults.straggle_work=0.0: must be in (0, 1]"),
    ("faults.straggle_work=null", "faults.straggle_work=null: must not be null"),
    ("faults.dropout=0.1", "faults.dropout=0.1: unknown key; did you mean faults.drop_out?"),
    ("cohort=roundrobin", "cohort=roundrobin: unknown; did you mean round_robin?"),
    ("cohort.size=3", "cohort.size=3: unknown key"),
    ("cohort=trace", "cohort.path: is missing"),
    ("cohort=trace cohort.path=/nowhere", "cohort.path=/nowhere: cannot be read: "),
    ("cohort=day_night cohort.period=1", "cohort.period=1: must be at least 2"),
    ("cohort=day_night cohort.share_on=0", "cohort.share_on=0: must be in (0, 1]"),
    ("cohort=by_loss cohort.candidates=0", "cohort.candidates=0: must be at least 1"),
    ("cohort=by_loss cohort.candidates=half", "cohort.candidates=half: must be a whole number or"),
    ("cohort=by_loss cohort.candidates=9", "cohort.candidates=9: must be in 10..10, from the "),
    ("local.batch_size=0", "local.batch_size=0: must be at least 1"),
    ("local.max_grad_norm=0", "local.max_grad_norm=0.0: must be greater than 0"),
    ("local.steps=0", "local.steps=0: must be at least 1"),
    ("local.loss=crossentropy", "local.loss=crossentropy: unknown; did you mean cross_entropy?"),
    ("local.label_smoothing=1", "local.label_smoothing=1.0: must be in [0, 1)"),
    ("local.label_smoothing=0.1 local.loss=mse", "is for local.loss=cross_entropy"),
    # a regression has no classes
    ("scenario=permuted_diabetes continual=lwf", "continual=lwf: is for classes, and dataset=diab"),
    ("scenario=permuted_diabetes local.loss=bce", "local.loss=bce: is for classes"),
    ("scenario=permuted_diabetes local.class_balance=0", "local.class_balance=0.0: is for classes"),
    (
        "scenario=permuted_diabetes local.label_smoothing=0.1",
        "local.label_smoothing=0.1: is for cl",
    ),
    ("scenario=permuted_diabetes partition=dirichlet", "partition Dirichlet goes by labels"),
    ("scenario=class_incremental dataset=diabetes", "ClassIncremental goes by labels"),
    (
        "scenario=permuted_diabetes continual.policy=class_balanced",
        "continual.policy=class_balanced: goes by classes",
    ),
    (
        "scenario=permuted_diabetes engine=functional continual.policy=class_balanced",
        "continual.policy=class_balanced: goes by classes",
    ),
    ("continual.regression=maybe", "continual.regression=maybe: must be"),
    ("scenario=task_digits continual=pnn continual.in_step=maybe", "continual.in_step=maybe: must"),
    (
        "scenario=task_digits continual=packnet clock=staggered",
        "continual=packnet: needs all clients in the same experience at the same time",
    ),
    ("scenario=task_digits continual=pnn clock=shuffled", "they are not; use clock=in_step"),
    ("scenario=independent continual=cwr_star", "they are not; use clock=in_step"),
    ("local.class_balance=1", "local.class_balance=1.0: must be in [0, 1)"),
    ("local.augment.crop=-1", "local.augment.crop=-1: must be at least 0"),
    ("local.augment.rotation=200", "local.augment.rotation=200.0: must be in [0, 180]"),
    ("local.augment.flipp=true", "did you mean local.augment.flip?"),
    ("local.precision=float16", "did you mean bfloat16?"),
    ("local.max_loss=0", "local.max_loss=0.0: must be greater than 0"),
    ("optimizer.dampening=2", "optimizer.dampening=2: must be in [0, 1]"),
    ("optimizer.nesterov=true", "Nesterov momentum requires a momentum and zero dampening"),
    ("optimizer=adam optimizer.eps=0", "optimizer.eps=0: must be greater than 0"),
    ("optimizer=rmsprop optimizer.alpha=1", "optimizer.alpha=1: must be in [0, 1)"),
    ("lr_schedule=cosin", "did you mean cosine?"),
    ("lr_schedule=step lr_schedule.every=0", "lr_schedule.every=0: must be at least 1"),
    ("lr_schedule=step lr_schedule.gamma=0", "lr_schedule.gamma=0: must be in (0, 1]"),
    ("lr_schedule=linear lr_schedule.end=0", "lr_schedule.end=0: must be in (0, 1]"),
    ("lr_schedule=cosine lr_schedule.end=2", "lr_schedule.end=2: must be in [0, 1]"),
    ("lr_schedule.over=round", "lr_schedule.over=round: must be one of run, experience"),
    ("lr_schedule.warmup=-1", "lr_schedule.warmup=-1: must be at least 0"),
    ("optimizer.lr=-1", "optimizer.lr=-1: Invalid learning rate: -1"),
    ("optimizer.momentum=1", "optimizer.momentum=1: must be in [0, 1)"),
    ("partition.alpha=0", "partition.alpha=0"),
    ("scenario.held_out=0.9", "scenario.held_out=0.9: must be between 0 and 0.5"),
    # who learns what, when and through which eyes
    ("scenario.sizes=[4,2]", "scenario.sizes=[4, 2]: must be 5 numbers from 1, as scenario.num_ex"),
    ("scenario.sizes=[9,9,9,9,9]", "scenario.sizes=[9, 9, 9, 9, 9]: add up to 45, more than the"),
    ("scenario.sizes=few", "scenario.sizes=few: must be "),
    (
        "scenario=class_incremental_online scenario.chunks=4",
        "scenario.chunks=4: must divide scenario.num_experiences=25",
    ),
    ("scenario=class_incremental_blurry scenario.blur=1", "scenario.blur=1: must be in [0, 1)"),
    (
        "scenario=class_incremental_repetition scenario.classes_per_experience=0",
        "scenario.classes_per_experience=0: must be at least 1",
    ),
    (
        "scenario=class_incremental_repetition scenario.num_experiences=2",
        "scenario.classes_per_experience=4: 2 experiences have room for 8 of the 10 classes",
    ),
    (
        "scenario=independent scenario.classes_per_experience=11",
        "scenario.classes_per_experience=11: more than the dataset's 10 classes",
    ),
    (
        "scenario=independent scenario.distinct=true scenario.num_experiences=6",
        "scenario.distinct=true: 6 experiences of 2 classes need more than the dataset's 10",
    ),
    ("scenario=domain_incremental_drift scenario.drift=nois", "did you mean noise?"),
    (
        "scenario=domain_incremental_drift scenario.severity=0",
        "scenario.severity=0: must be greater than 0 and finite for scenario.drift=noise",
    ),
    (
        "scenario=domain_incremental_drift scenario.drift=contrast scenario.severity=1",
        "scenario.severity=1: must be greater than 0 and less than 1 for scenario.drift=contrast",
    ),
    (
        "scenario=domain_incremental_drift scenario.drift=tint",
        "scenario.drift=tint: needs images (3 channels, height, width), inputs are [1, 8, 8]",
    ),
    ("scenario=sources", "scenario.by=domain: dataset digits has no such tag; tags: none"),
    ("scenario=sources scenario.kind=classes", "did you mean class?"),
    (
        "partition=log_normal partition.sigma=-1",
        "partition.sigma=-1: must be at least 0 and finite",
    ),
    ("partition=natural", "partition.by=writer: dataset digits has no such tag; tags: none"),
    ("partition=from_file", "partition.path: is missing"),
    (
        "partition=from_file partition.path=/nowhere.json",
        "partition.path=/nowhere.json: cannot be read: ",
    ),
    ("clock=in_stepp", "clock=in_stepp: unknown; did you mean in_step?"),
    ("clock.order=shufled", "did you mean shuffled?"),
    ("clock.delay=-1", "clock.delay=-1: must be at least 0"),
    ("clock.delay=1.5", "clock.delay=1.5: must be a whole number"),
    ("clock.spread=1", "clock.spread=1: must be in [0, 1)"),
    ("clock.joining=1.1", "clock.joining=1.1: must be in [0, 1]"),
    ("clock.leaving=-1", "clock.leaving=-1: must be in [0, 1]"),
    ("clock.pausing=often", "clock.pausing=often: must be a finite number"),
    ("clock=null", "clock=null: unknown; choices: churn, in_step, "),
    ("skew=rotate", "did you mean rotated?"),
    ("skew.rotation=200", "skew.rotation=200: must be in [0, 180]"),
    ("skew.label_noise=1.5", "skew.label_noise=1.5: must be in [0, 1]"),
    (
        "scenario=task_digits skew=noisy_labels",
        "skew.label_noise=0.4: a wrong label may be of another task",
    ),
    (
        "scenario=permuted_diabetes skew.label_noise=0.1",
        "skew.label_noise=0.1: a regression has no labels",
    ),
    (
        "scenario=permuted_diabetes skew.rotation=20",
        "skew.rotation=20: needs images (channels, height, width), inputs are [10]",
    ),
    (
        "clock=uneven lr_schedule.warmup=5 lr_schedule.over=experience",
        "lr_schedule.warmup=5: must be less than the 5 rounds of an experience",
    ),
    # names
    ("runtime.devices=cuda:99", "runtime.devices=cuda:99: this machine has"),
    ("engine=avalance", "engine=avalance: unknown; did you mean avalanche?"),
    (
        "engine=functional continual=gem",
        "engine=functional: continual=gem has no functional twin; use engine=avalanche, or one of ",
    ),
    (
        "engine=functional continual=replay_class_balanced continual.policy=herding "
        "continual.anchor=local",
        "continual.policy=herding: engine=functional has no policy that looks at the model",
    ),
    (
        "engine=functional optimizer=adam optimizer._target_=torch.optim.RAdam",
        "optimizer=RAdam: engine=functional has no RAdam; it has Adagrad, Adam, AdamW, RMSprop, ",
    ),
    ("runtime.workers=2", "runtime.workers=2: is for worker processes"),
    ("runtime.start=spawn", "runtime.start=spawn: is for worker processes"),
    ("runtime.state_dir=states", "runtime.state_dir=states: is for worker processes"),
    ("runtime.executor=vectorized", "runtime.executor=vectorized: needs engine=functional"),
    ("runtime.executor=seriel", "did you mean serial?"),
    ("name=a/b", "name=a/b: must be up to 200 letters, digits"),
    (f"name={'a' * 201}", "must be up to 200 letters"),
    ("name=", "name=: must be up to 200 letters"),
    ("out=/dev/null/runs", "out=/dev/null/runs: /dev/null is not a directory"),
    ("model._target_=fedlearn.models.mlp.MPL", "has no MPL; did you mean MLP?"),
    ("model._target_=fedlearn.modles.mlp.MLP", "fedlearn has no modles; did you mean models?"),
    ("model._target_=nowhere.MLP", "there is no module nowhere"),
    # parts that do not fit together
    ("aggregation.fraction_train=0.5", "aggregation.fraction_train=0.5: must be exactly 1"),
    ("aggregation=krum num_clients=4", "aggregation=krum: needs at least 2f+3 = 5 clients"),
    ("aggregation=krum fraction_train=0.3", "aggregation=krum: needs at least 2f+3 = 5 clients"),
    ("aggregation=bulyan num_clients=6", "aggregation=bulyan: needs at least 4f+3 = 7 clients"),
    ("aggregation=multikrum aggregation.num_nodes_to_select=10", "num_nodes_to_select=10"),
    ("aggregation=fedtrimmedavg aggregation.beta=0.7", "aggregation.beta=0.7: "),
    ("aggregation=fedprox aggregation.proximal_mu=-1", "aggregation.proximal_mu=-1: must be"),
    ("aggregation=fedavgm aggregation.server_momentum=1", "must be in [0, 1)"),
    ("scenario.num_experiences=11", "more than the dataset's 10 classes"),
    ("num_clients=1000000", "num_clients=1000000"),
    ("scenario=split_mnist dataset.root=/nowhere", "dataset.root=/nowhere"),
    ("model=lenet", "model=lenet"),
    ("scenario=task_digits head.mask=true", "head.mask=true: does nothing in a task-incremental"),
    ("scenario=permuted_digits head.mask=true", "head.mask=true: does nothing"),
    ("local.augment.crop=8", "local.augment.crop=8: must be less than the image's 8 pixels"),
    (
        "dataset=synthetic dataset.input_shape=[20] local.augment.flip=true",
        "local.augment.flip=true: needs images (channels, height, width)",
    ),
    (
        "local.freeze=[feature.*]",
        "local.freeze=feature.*: matches no parameter; did you mean features",
    ),
    (
        "scenario=task_digits continual=pnn local.freeze=['features.*']",
        "local.freeze=[features.*]: continual=pnn trains layers of its own",
    ),
    ("local.freeze=['*']", "local.freeze=[*]: matches every parameter; nothing would train"),
    ("lr_schedule.warmup=50", "lr_schedule.warmup=50: must be less than the 50 rounds of the run"),
    (
        "lr_schedule.warmup=10 lr_schedule.over=experience",
        "lr_schedule.warmup=10: must be less than the 10 rounds of an experience",
    ),
]
COMMAND_LINE = [
    (["rn"], "fedlearn rn: unknown; did you mean run? commands: "),
    (["list", "continul"], "fedlearn list continul: unknown group; did you mean continual?"),
    (["doctor", "now"], "now"),
    (["run", "--mutirun"], "unrecognized arguments: --mutirun; see fedlearn run --help"),
    (["run", "--cfg", "jobs"], "invalid choice: 'jobs'"),
    (["run", "--cfg", "job", "continual=replya"], "did you mean replay?"),
    (["run", "--config-dir", "/nowhere"], "--config-dir=/nowhere: there is no such directory"),
    (["run", "-m", "seed=0,1", "continual=naive,replya"], "did you mean replay?"),
    (["run", "-m", "aggregation=krum", "num_clients=10,4"], "needs at least 2f+3"),
    (["run", "-m", "seed=interval(0,1)"], "an interval has no end of values"),
    (["run", "-m", "continual=glob(nothing*)"], "matches no choice"),
    (["run", "-m", "hydra.job.name=a,b"], "Hydra's own keys cannot have several values"),
    (["run", "hydra.run.dirr=x"], "hydra.run.dirr=x: Key 'dirr' not in 'RunDir'"),
    (["run", "hydra/launcher=nothing"], "hydra/launcher"),
    (["run", "hydra.run.dir=${nothing}"], "Interpolation key 'nothing' not found"),
]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [(["run", *text.split(" ")], fragment) for text, fragment in CONFIGURATION] + COMMAND_LINE,
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], fragment: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("\n")
    assert fragment in err
    assert not runs.exists()


def test_two_mistakes_are_reported_one_at_a_time(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "continual=replya", "seed=x"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "replya" in err


def test_a_broken_user_yaml_is_named_with_its_line(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "more" / "model" / "mine.yaml"
    broken.parent.mkdir(parents=True)
    broken.write_text("# mine\n_target_: [\nhidden: 3\n")
    assert main(["run", "--config-dir", str(tmp_path / "more"), "model=mine"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "mine.yaml, line 4" in err


def test_a_bug_is_not_dressed_up_as_the_users_mistake(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "buggy.py").write_text(
        "class Model:\n"
        "    def __init__(self, input_shape, num_classes):\n"
        "        raise KeyError('a bug')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyError, match="a bug"):
        main(["run", "model._target_=buggy.Model", "~model.hidden_sizes", *_CLEAR])


_CLEAR = ["~model.activation", "~model.dropout", "~model.batch_norm"]


def _fedlearn(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fedlearn", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize(
    "arguments", [["run", "local.epoch=3"], ["run", "optimizer.lr=-1"], ["rnu"]]
)
def test_as_a_process_it_is_the_same(arguments: list[str], tmp_path: Path) -> None:
    done = _fedlearn(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
