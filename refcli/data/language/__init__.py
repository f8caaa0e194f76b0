"""The language that refcli writes: terms that denote sets of objects, and their wording as English expressions."""
