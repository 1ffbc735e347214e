"""Rows set side by side where they are equal: intervals over seeds, levels and budgets, pairs of arms."""



