"""Writing models in the formats of other tools. `FORMATS` names them; each is a module with `plan` and `write`."""
