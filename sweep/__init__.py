"""Many trials: plan them, keep them, launch them, compare them. No torch, ever."""
