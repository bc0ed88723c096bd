"""Networks, taps, checkpoints and the teacher."""
