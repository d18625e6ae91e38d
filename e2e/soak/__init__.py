"""Real programs under load, through many checkpoints and restores over CRI: ./dev soak."""
