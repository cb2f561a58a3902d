"""What both ends say about local training: schedules of the learning rate, corrections of drift."""

from fedcompress.training.corrections import CORRECTIONS, Correction, FedProx, correction_named
from fedcompress.training.schedules import SCHEDULES, Schedule, schedule_named

__all__ = ["CORRECTIONS", "SCHEDULES", "Correction", "FedProx", "Schedule", "correction_named", "schedule_named"]
