"""Models without their embedding table: built, loaded, frozen, adapted; no collectives."""
