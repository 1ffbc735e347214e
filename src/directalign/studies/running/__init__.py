"""Trainings and measurements as units that are kept when finished and resumed when not: arms, their runs, budgets, sizes and rows."""



