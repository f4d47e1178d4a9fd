"""Many devices and processes as one: how processes join and agree, where arrays lie, and the step over all devices."""
