"""What came out: metrics, offline figures, the comparison with the planted truth."""
