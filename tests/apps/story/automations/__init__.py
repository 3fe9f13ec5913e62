"""A package, so that the tests also cover the discovery of automations in submodules."""
