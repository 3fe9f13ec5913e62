"""Operations: what an operator asks of the engine: health, resuming, re-encrypting."""
