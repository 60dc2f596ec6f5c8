from hypothesis import settings

# A loaded machine is no bug: time is bounded by pytest's own limit, not example by example.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
