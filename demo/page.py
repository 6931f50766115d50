"""The page of the demo: its words, in the order in which they are read."""

from demo import continuous, cost, digits, posterior, tables, webpage
from demo.webpage import Section

ACCELERATE = """\
flow = Flow(CompositeTransform(layers), StandardNormal([64]))   # nflows, as it is
flow = flowkern.accelerate(flow)                                # fused kernels, same numbers"""

MOONS = """\
flow = flowkern.flows.RealNVP(features=2, transforms=8, hidden_features=(64, 64))
loss = -flow().log_prob(x).mean()
samples = flow().sample((2000,))"""


CONTINUOUS = """\
flow = flowkern.flows.CNF(features=2, hidden_features=(64, 64))     # by likelihood:
loss = -flow().log_prob(x).mean()

field = flowkern.nn.VectorField(features=2, activation="gelu")      # by flow matching, no solve:
loss = flowkern.matching.FlowMatching(field).loss(x)
flow = flowkern.flows.CNF(field=field)                              # its samples, its likelihood"""


def write(path, results, pictures, settings):
    """Write the page to `path` and return it."""
    webpage.write(
        path,
        title="A neural spline flow, accelerated",
        lead=_lead(results, settings),
        headline=_headline(results),
        sections=[
            _digits(results, pictures["digits"], settings),
            _training(results, pictures["training"]),
            _agreement(results),
            _speed(results, pictures["speed"]),
            _autoregressive(results, pictures["autoregressive"], settings),
            _autoregressive_agreement(results),
            _cost(results, pictures["cost"]),
            _posterior(results, pictures["posterior"], settings),
            _moons(pictures["moons"]),
            _continuous(results, pictures["continuous"]),
            _animation(pictures["animation"]),
            _torchdiffeq(results, pictures["torchdiffeq"]),
            _memory(results, pictures["memory"]),
            _solvers(pictures["solvers"]),
            _machine(results),
        ],
    )
    return path


def _lead(results, settings):
    lead = (
        f"An unmodified nflows spline flow ({settings.layers} coupling layers, "
        f"{settings.bins} bins) learns scikit-learn's handwritten digits twice from the same seed: "
        "plain, and after flowkern.accelerate(flow)."
    )
    if results.backend == "reference":
        lead += (
            " The fused kernels do not run on this machine, so flowkern's plain reference "
            "implementation did the work: the figures below show no acceleration."
        )
    return lead


def _headline(results):
    cards = []
    for work in (*results.works, *results.maf_works):
        if {"eager", "flowkern"} <= work.timings.keys():
            speedup = work.timings["flowkern"].speedup_over(work.timings["eager"])
            cards.append((f"{speedup:.1f} ×", f"{work.title}, against plain"))
    bits = results.accelerated_curve.held_out_bits[-1]
    return [
        *cards,
        (f"{bits:.2f}", f"bits per dimension, held out (uniform: {digits.UNIFORM_BITS:.2f})"),
    ]


def _digits(results, picture, settings):
    return Section(
        "Digits",
        "1500 of the 1797 digits train the flow, the rest are held out. Grey levels are "
        "dequantised with uniform noise and mapped to the real line by a logit, whose Jacobian "
        "counts in the likelihood. The flow is told the class.",
        code=ACCELERATE,
        picture=picture,
        caption=f"Left: held-out digits. Right: the first digits that the accelerated flow "
        f"generated after {settings.steps} steps, none chosen by hand.",
    )


def _training(results, picture):
    return Section(
        "Training",
        "Both runs see the same digits, noise and dropout in the same order. Thin lines: each "
        "batch. Thick lines: the held-out digits; 1500 digits are few, so the flow overfits. "
        "Training amplifies the last bit of every sum, so the table has a control: the "
        "accelerated run again, its first weights changed by one part in ten million.",
        picture=picture,
        caption="The runs take turns, and time counts training steps alone.",
        table=tables.training(results),
    )


def _agreement(results):
    return Section(
        "The same numbers",
        "The plain flow's trained weights, run plain and accelerated in float32; the distance of "
        "each to float64 tells how much of a difference is ordinary rounding.",
        table=tables.agreement(results.agreement),
    )


def _speed(results, picture):
    return Section(
        "Speed",
        "All ways are timed in turn, round by round, in one process on this machine.",
        picture=picture,
        caption="Medians; black lines span the quartiles.",
        table=tables.speed(results.works),
    )


def _autoregressive(results, picture, settings):
    return Section(
        "Autoregressive flows",
        f"Two more unmodified models of the same digits: nflows' MAF and zuko's, "
        f"{settings.maf_layers} layers each, trained plain for {settings.maf_steps} steps. To draw "
        f"one batch of samples, both run every conditioner {digits.FEATURES} times, once for each "
        "pixel. It is a triangular solve: after flowkern.accelerate(flow), every weight is used once.",
        picture=picture,
        caption="Medians; black lines span the quartiles.",
        table=tables.autoregressive(results),
    )


def _autoregressive_agreement(results):
    return Section(
        "The same samples",
        "Both ways turn the same noise into samples with their log-dets, each in float32; float64 as above.",
        table=tables.agreement(results.maf_agreement),
    )


def _cost(results, picture):
    return Section(
        "Cost against the number of features",
        f"One layer of nflows with two hidden layers of 4·D units, untrained, {cost.BATCH} samples "
        "per call. An inverse in D passes costs D forward passes; the triangular solve about one. "
        "The plain inverse is timed as far as it stays affordable.",
        picture=picture,
        caption="Both axes are logarithmic.",
        table=tables.cost(results.costs),
    )


def _posterior(results, picture, settings):
    return Section(
        "Posterior estimation",
        f"The MAF that sbi trains by default ({posterior.LAYERS} layers, {posterior.PARAMETERS} parameters, "
        f"{posterior.OBSERVATIONS} observations, batches of {posterior.BATCH}), for a simulator whose posterior is "
        "known. At this size Python and the optimiser cost more than the arithmetic: the whole flow becomes one call, "
        "and Adam(fused=True) does the rest.",
        picture=picture,
        caption="Left: the runs take turns, from the same weights and batches. Right: flowkern.profile of one step "
        "with Adam as sbi calls it.",
        table=tables.posterior(results),
    )


def _moons(picture):
    return Section(
        "Two moons",
        "A Real NVP from flowkern's own flow API.",
        code=MOONS,
        picture=picture,
        caption="Data, the learnt density, and samples from it.",
    )


def _continuous(results, picture):
    likelihood, matching = results.ode_nats
    return Section(
        "Continuous flows",
        "The same two moons by two continuous flows: one trained by likelihood, through its solve, the "
        "other by flow matching. Their fields have two hidden layers of 64 units. A whole solve, from noise "
        "to data or back, with the trace of the Jacobian, is one kernel.",
        code=CONTINUOUS,
        picture=picture,
        caption=f"Learnt densities, and the paths of 120 points of noise (grey) to data (orange). Held-out "
        f"negative log-likelihood: {likelihood:.2f} and {matching:.2f} nats.",
    )


def _animation(picture):
    return Section(
        "From noise to data",
        "The same points of noise follow both fields from t = 0 to t = 1.",
        picture=picture,
        caption="Left: trained by likelihood, whose paths are free. Right: by flow matching.",
    )


def _torchdiffeq(results, picture):
    return Section(
        "torchdiffeq and flowkern",
        f"The flow trained by likelihood, with the same weights and the same {continuous.STEPS} steps of rk4 "
        "(the 3/8 rule, which torchdiffeq calls so). With torchdiffeq the trace comes from autograd, as "
        "its users write it; a training step goes back through the steps in both.",
        picture=picture,
        caption="Medians; black lines span the quartiles.",
        table=tables.continuous(results),
    )


def _memory(results, picture):
    return Section(
        "Memory of the gradient",
        "torchdiffeq keeps all activations of all steps. flowkern keeps one state per step (discrete), or one "
        "in √steps and computes those between a second time (checkpoints): the same gradient. The adjoint "
        "keeps none, and is another gradient, that of the exact solution up to the method's error.",
        picture=picture,
        caption="Both axes are logarithmic.",
        table=tables.memory(results.memories),
    )


def _solvers(picture):
    return Section(
        "How accurate the solvers are",
        "On dx/dt = tanh x from t = 0 to 2, which has a closed form, for 61 points from −3 to 3, in "
        "float64: the largest error against evaluations of the field.",
        picture=picture,
        caption="Both axes are logarithmic; an error of order p falls by 2^p when steps double.",
    )


def _machine(results):
    fields = {**results.machine, "Backend": results.backend, **results.versions}
    return Section("Machine and versions", "", table=tables.fields("", fields))
