"""`accelerate` of objects that are no modules but hold some: posteriors, ensembles, trainers."""

import copy
import functools
import pickle

import pytest
import torch

import flowkern
from tests.adapters.program_models import C, data, nflows_flow, zuko_flow


class Potential:
    """As sbi's: it names the estimator again."""

    def __init__(self, estimator):
        self.posterior_estimator, self.prior = estimator, None


class Posterior:
    """As sbi's DirectPosterior."""

    def __init__(self, estimator):
        self.potential_fn = Potential(estimator)
        self.posterior_estimator = estimator
        self.itself = self

    def log_prob(self, x, context):
        return self.posterior_estimator.log_prob(x, context)


class Ensemble:
    """As sbi's EnsemblePosterior."""

    def __init__(self, posteriors):
        self.posteriors, self.weights = posteriors, torch.ones(len(posteriors))


def held(posterior):
    return [layer.name for layer in flowkern.explain(posterior).replaced]


def test_a_posterior_is_accelerated_by_its_estimator(programs):
    posterior = Posterior(nflows_flow("maf"))
    x, c = data(C)
    want = posterior.log_prob(x, c)
    assert flowkern.accelerate(posterior) is posterior
    names = held(posterior)
    assert len(names) == 7 and names[0] == "posterior_estimator" and len(set(names)) == 7
    assert all(name.startswith("posterior_estimator") for name in names)
    programs.clear()
    torch.testing.assert_close(posterior.log_prob(x, c), want, rtol=1e-10, atol=1e-10)
    assert len(programs) == 1
    assert flowkern.restore(posterior) is posterior and not held(posterior)


def test_copies_of_a_posterior_are_accelerated():
    posterior = flowkern.accelerate(Posterior(nflows_flow("maf")))
    x, c = data(C)
    for twin in (copy.deepcopy(posterior), pickle.loads(pickle.dumps(posterior))):
        assert held(twin) == held(posterior)
        torch.testing.assert_close(twin.log_prob(x, c), posterior.log_prob(x, c))


def test_an_ensemble_is_accelerated_member_by_member():
    shared = Posterior(nflows_flow("maf"))
    ensemble = Ensemble([shared, Posterior(zuko_flow("maf")), shared])
    names = held(flowkern.accelerate(ensemble))
    assert len(names) == 7 + 5
    assert {name.split(".")[1] for name in names} == {"0", "1"}
    by_name = {"estimators": {"first": nflows_flow("maf")}}
    assert held(flowkern.accelerate(by_name))[0] == "estimators.first"


def test_a_class_a_function_or_a_tensor_of_an_object_is_no_place_to_look():
    posterior = Posterior(nflows_flow("maf"))
    flow = zuko_flow("maf")
    posterior.build, posterior.method, posterior.other = functools.partial(flow), flow.forward, lambda: flow
    posterior.prior, posterior.weights = torch.distributions.Normal(0.0, 1.0), torch.ones(3)
    flowkern.accelerate(posterior)
    assert not flowkern.explain(flow).replaced


@pytest.mark.parametrize("function", [flowkern.accelerate, flowkern.restore, flowkern.explain])
def test_an_object_without_modules_is_refused(function):
    for model in ("model", 3, None, Ensemble([]), torch.ones(3)):
        with pytest.raises(TypeError, match="^model: expected a torch.nn.Module or an object that holds one, got "):
            function(model)


def test_a_distribution_that_a_flow_has_made_is_refused():
    with pytest.raises(TypeError, match="got NormalizingFlow, which a flow has made already: pass the flow"):
        flowkern.accelerate(zuko_flow("maf")(data(C)[1]))


def test_a_posterior_is_profiled_by_its_flow():
    x, c = data(C)
    assert flowkern.profile(Posterior(nflows_flow("maf")), x, c, seconds=0.1).accelerated
    two = Ensemble([Posterior(nflows_flow("maf")), Posterior(nflows_flow("maf"))])
    message = "Ensemble, which holds several: model.posteriors.0.posterior_estimator, model.posteriors.1"
    with pytest.raises(TypeError, match=message):
        flowkern.profile(two, x, c)
    with pytest.raises(TypeError, match="got Posterior, which holds no such flow"):
        flowkern.profile(Posterior(torch.nn.Linear(2, 2)), x, c)
