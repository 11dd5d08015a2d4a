"""From what a user says to frozen settings: Hydra composes `conf/` and overrides, the settings' own rules decide."""
