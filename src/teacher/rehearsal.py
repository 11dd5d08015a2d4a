def rehearse_early(settings, data):
    pass
