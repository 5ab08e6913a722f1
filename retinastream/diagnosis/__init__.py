"""What this machine has and lacks for finding faces in video: checks that look, judge and print nothing."""

from retinastream.diagnosis.diagnose import Diagnosis, diagnose
from retinastream.diagnosis.finding import Finding, Status

__all__ = ["Diagnosis", "Finding", "Status", "diagnose"]
