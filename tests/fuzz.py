"""A pytest plugin for `make fuzz`: a Hypothesis profile that looks a hundred times longer."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "fuzz",
    max_examples=10_000,
    deadline=None,
    # A long search is what is asked for here.
    suppress_health_check=[HealthCheck.too_slow],
)
