"""Operations: what an operator asks of the engine: its health, explanations, resuming, re-encryption."""
