"""Trainings behind the toy world."""



